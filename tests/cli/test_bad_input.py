"""Generated bad input in one process: each case ends with an error message and code 2, or with a sound result."""

import json
import random
import shutil
import signal
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import write_images
from PIL import Image

from patnet.cli import main
from patnet.cli.parser import COMMANDS, Command

# Small numbers only: a valid answer may be a training run, with that many epochs, workers or pixels.
VALUES = (
    *("", "-1", "0", "1", "2", "0.5", "-0.1", "nan", "inf", "-inf", "1e-400", "true", "null", "none", "auto", "x", "é"),
    *("[", "[1", "[1, 2]", "{a: 1}", "{", "'", "../..", "/dev/null", "a b", "\udcff", "%s", "--", "1,2", "x" * 300),
)
LITERALS = (-1, 0, 1, 2, 0.5, -0.1, float("nan"), float("inf"), True, None, "x", "", [], [1], [0.1, 1], {}, {"a": 1})
FAST = {
    "train": "--epochs 1 --batch-size 2 --img-size 32 --workers 0 --accelerator cpu --val-fraction 0.25 "
    "--model-kwargs.embed_dim 8 --model-kwargs.depths [1,1,1,1] --model-kwargs.num_heads 2 "
    "--model-kwargs.feature_dim 16",
    "detect train": "--epochs 1 --batch-size 1 --min-size 64 --max-size 64 --workers 0 --accelerator cpu --width 16 "
    "--backbone-kwargs.embed_dim 8 --backbone-kwargs.depths [1,1,1,1] --backbone-kwargs.num_heads 2",
}
# What takes seconds, or serves a page until it is interrupted, is given wrong options only.
LONG = {"demo", "bench", "models"}
# Options that start processes, wait for other machines, download or measure.
SKIPPED = set(
    "devices num_nodes workers push plan plan_seconds wandb_project torchcompile strategy".split()  # noqa: SIM905
)
SECONDS = 120


@pytest.fixture(scope="module")
def files(tmp_path_factory, checkpoint_dir, run_dir):
    """Good files, of which the cases are made."""
    root = tmp_path_factory.mktemp("good")
    images = write_images(root / "images", a=4, b=4)
    box = {"category_id": 1, "bbox": [4, 4, 12, 10], "area": 120, "iscrowd": 0}
    coco = {
        "images": [{"id": i, "file_name": f"{i:02d}.png", "width": 40, "height": 36} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, **box} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "coco.json").write_text(json.dumps(coco))
    exported = root / "good.pt2"
    options = ["--data", str(images), "--check-images", "2", "--format", "torch"]
    assert main(["export", str(checkpoint_dir), "--out", str(exported), *options]) == 0
    made = {"images": images, "image": images / "a" / "00.png", "coco": root / "coco.json", "exported": exported}
    return SimpleNamespace(**made, checkpoint=checkpoint_dir, run=run_dir)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a change: cut, flipped, inserted, zeroed or none left."""
    where = rng.randrange(len(data)) if data else 0
    before, after = data[:where], data[where:]
    changed = before + bytes([rng.randrange(256)]) + after[1:], before + rng.randbytes(rng.randrange(1, 40)) + after
    return rng.choice([before, *changed, data[: where // 8] + bytes(16) + data[where // 8 + 16 :], b""])


def change_json(content, rng: random.Random):
    """A JSON value with one change somewhere in it."""
    if isinstance(content, dict | list) and content and rng.random() < 0.9:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        change = rng.random()
        changed = content.copy()
        if change < 0.2:
            changed.pop(key)
        elif change < 0.3 and isinstance(content, list):
            changed.append(content[key])
        else:
            changed[key] = change_json(content[key], rng)
        return changed
    return rng.choice([*LITERALS, 10**30, "x" * 50, [[]], -(10**9)])


def training_words(files, name, work):
    """A good `train` or `detect train` command of few steps."""
    data = (
        ["--data", files.coco, "--images", files.image.parent] if name == "detect train" else ["--data", files.images]
    )
    return [*name.split(), *data, "--out", work / "out", *FAST[name].split()]


def bad_options(files, rng, work):
    """A command with a few random values, of all its options."""
    name = rng.choice([name for name in COMMANDS if rng.random() < 0.9 or name not in LONG])
    command = Command(name)
    good = {"images": files.image.parent, "out": work / "out", "run": files.checkpoint, "runs": files.run}
    good |= {"folders": files.run.parent, "source": files.coco, "size": 64}
    words = training_words(files, name, work) if name in FAST else name.split()
    for option in command.options.values():
        if name not in FAST and (option.name in command.positional or option.required):
            flag = [] if option.name in command.positional else [option.flag]
            words += [*flag, *[good.get(option.name, "x")] * (2 if option.name in ("size", "runs") else 1)]
    optional = [o for o in command.options.values() if o.name not in SKIPPED and o.name not in command.positional]
    for option in rng.sample(optional, min(len(optional), rng.randint(1, 3))):
        values = [] if option.hint is bool else [rng.choice(VALUES) for _ in range(rng.choice([1, 1, 1, 2]))]
        words += [option.flag, *values]
    if name in LONG or rng.random() < 0.15:
        words += [rng.choice(["--no-such", "--outt", "-q", "--lrr=3", "---", "--config"])]
    if rng.random() < 0.1:
        words = [*words[: rng.randrange(len(words))], rng.choice(VALUES)]
    return words if rng.random() < 0.95 else [rng.choice(VALUES), *words[1:]]


def bad_yaml(files, rng, work):
    """A command with a YAML file of random options and values, or of random text."""
    name = rng.choice(["train", "train", "predict", "detect train"])
    options = [o for o in Command(name).options.values() if o.name not in SKIPPED]
    chosen = {option.name: rng.choice(LITERALS) for option in rng.sample(options, rng.randint(1, 3))}
    content = yaml.safe_dump(chosen, allow_unicode=True).encode()
    (work / "options.yaml").write_bytes(damage(content, rng) if rng.random() < 0.3 else content)
    if name == "predict":
        return ["predict", files.checkpoint, files.image, "--config", work / "options.yaml"]
    return [*training_words(files, name, work), rng.choice(["--config", "--recipe"]), work / "options.yaml"]


def bad_images(files, rng, work):
    """A damaged or unusual image file, to predict, inspect, check or train on."""
    file = work / rng.choice(["x.png", "x.jpg", "x.gif", "x.tif", "x.webp", "x.bmp"])
    mode = rng.choice(["RGB", "L", "1", "P", "RGBA", "I;16", "CMYK", "F", "LA"])
    size = rng.choice([(1, 1), (40, 1), (7, 9)])
    try:
        Image.new(mode, size).save(file)
    except (OSError, KeyError, ValueError):
        Image.fromarray(np.zeros((9, 7), np.uint8)).save(file)
    if rng.random() < 0.8:
        file.write_bytes(damage(rng.choice([file, files.image]).read_bytes(), rng))
    command = rng.choice(["predict", "predict", "inspect", "train"])
    if command == "train":
        shutil.copytree(files.images, work / "images")
        shutil.copy(file, work / "images" / "a")
        strict = rng.choice([[], ["--strict"], ["--max-unreadable", "1"]])
        return [*training_words(files, "train", work), "--data", work / "images", *strict]
    return [command, files.checkpoint, file, *(["--json"] if command == "predict" else ["--out", work / "out"])]


def bad_annotations(files, rng, work):
    """A changed or damaged file in COCO's format, to check or to train on."""
    file = work / "coco.json"
    content = json.loads(files.coco.read_text())
    for _ in range(rng.randint(1, 3)):
        content = change_json(content, rng)
    file.write_text(json.dumps(content))
    if rng.random() < 0.2:
        file.write_bytes(damage(file.read_bytes(), rng))
    if rng.random() < 0.1:
        return [*training_words(files, "detect train", work), "--data", file]
    options = rng.choice([[], ["--json"], ["--decode"], ["--max-invalid", "1"]])
    return ["data", "check", file, "--images", files.image.parent, "--out", work / "out", *options]


def bad_checkpoints(files, rng, work):
    """A checkpoint whose config.json or weights are changed or damaged, a damaged run directory or exported file."""
    run = work / "checkpoint"
    kind = rng.choice(["checkpoint"] * 6 + ["run"] * 3 + ["exported"] * 4 + ["pickle"] * 3)
    if kind == "exported":
        run = work / f"x{rng.choice(['.pt2', '.pt2', '.onnx', '.xml'])}"
        run.write_bytes(damage(files.exported.read_bytes(), rng))
    elif kind == "pickle":
        run = work / "x.pth"
        state = rng.choice([{}, {"x": 1}, [1], {"stem.conv.weight": torch.zeros(3)}])
        torch.save({"state_dict": state}, run)
    else:
        shutil.copytree(getattr(files, kind), run)
        damage_directory(run, rng)
    image, data, out = files.image, ["--data", files.images], work / "out"
    return rng.choice(
        [
            ["predict", run, image, "--json"],
            ["evaluate", run, *data, "--out", out, "--workers", "0"],
            ["inspect", run, image, "--out", out],
            ["hub", run, "--out", out],
            ["runs", work],
            ["export", run, "--out", f"{out}.pt2", *data, "--check-images", "1"],
            ["detect", "predict", run, image, "--out", out],
            [*training_words(files, "train", work), "--weights", run],
            ["train", "--resume", "--out", run],
        ]
    )


def damage_directory(directory, rng):
    """Change a file of a checkpoint or of a run."""
    changed = rng.choice([f for f in directory.rglob("*") if f.is_file() and f.suffix not in (".png", ".0")])
    if changed.name == "config.json" and rng.random() < 0.8:
        changed.write_text(json.dumps(change_json(json.loads(changed.read_text()), rng)))
    elif changed.suffix == ".safetensors" and rng.random() < 0.6:
        tensors = safetensors.torch.load_file(changed)
        name = rng.choice(list(tensors))
        value = tensors.pop(name)
        other = [value.flatten()[:-1].clone(), value.half(), value * float("nan"), value[None], torch.zeros(0)]
        tensors |= {rng.choice([name, "x"]): rng.choice(other)} if rng.random() < 0.8 else {}
        safetensors.torch.save_file(tensors, changed)
    else:
        changed.write_bytes(damage(changed.read_bytes(), rng))


# Each with its share of the cases.
MAKERS: dict[Callable, int] = {bad_options: 35, bad_yaml: 15, bad_images: 15, bad_annotations: 15, bad_checkpoints: 20}


@contextmanager
def time_limit(seconds: int):
    """Raise `TimeoutError` where it takes longer."""

    def stop(signum, frame):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(words: list[str], capfd) -> str | None:
    """What is wrong with the answer of the command line to these words."""
    capfd.readouterr()
    try:
        with time_limit(SECONDS):
            code = main(words)
    except SystemExit as left:
        code = left.code
    except BaseException:
        return traceback.format_exc(limit=-6)
    out, err = capfd.readouterr()
    messages = [line for line in err.splitlines() if line.startswith("patnet: ")]
    if code not in (0, 2) or "Traceback" in err:
        return f"code {code}\n{err[-2000:]}"
    if code == 2 and (not messages or any(len(line) > 900 or len(line) < 20 for line in messages)):
        return f"code 2, messages {messages}\n{err[-2000:]}"
    if code == 0 and words[0] == "predict" and "--json" in words and "--out" not in words:
        for entry in json.loads(out):
            if not 0 <= entry["probability"] <= 1:
                return f"a prediction that is no probability: {entry}"
    return None


@pytest.mark.parametrize("share", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_bad_input_is_answered(maker, share, files, tmp_path, monkeypatch, capfd):
    found = []
    seeds = range(1000 * (share > 1), 1000 * (share > 1) + share * MAKERS[maker])
    for seed in seeds:
        rng, work = random.Random(f"{maker.__name__} {seed}"), tmp_path / str(seed)
        work.mkdir()
        monkeypatch.chdir(work)
        words = list(map(str, maker(files, rng, work)))
        if wrong := problem(words, capfd):
            found.append(f"case {seed}: patnet {' '.join(map(repr, words))}\n{wrong}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(work)
    assert not found, f"{len(found)} of {len(seeds)} cases\n\n" + "\n\n".join(found)
