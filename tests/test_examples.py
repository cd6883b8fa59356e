"""Every example of the README and the documentation is parsed, and run unless its mark says otherwise."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from images import write_images
from pages import LANGUAGES, PAGES, ROOT, SHORTER, Example, Reader, examples, parse_example
from PIL import Image

import patnet.data.elpv
from patnet.cli import main
from patnet.data import DATA_SETS
from patnet.deploy import BACKENDS
from patnet.errors import InputError
from patnet.nn import CHANNEL_ATTENTIONS, MIXERS, SPATIAL_ATTENTIONS

ALL = [example for page in PAGES for example in examples(page) if example.language in ("python", "sh")]
AUTHORS = Path(__file__).parent / "data" / "authors_small.safetensors"

# What a page's reader has before its first line, besides images.
GIVEN = {
    "README.md": (),
    "docs/guides/coming-from.md": ("authors_t0.pth",),
    "docs/guides/detector.md": ("runs/elpv", "panels"),
    "docs/guides/fine-tune.md": ("runs/first", "weights.pth"),
    "docs/guides/inside.md": ("runs/first",),
    "docs/guides/onnx.md": ("runs/first",),
    "docs/guides/phones.md": ("runs/first",),
    "docs/guides/cluster.md": ("runs/first",),
    "docs/guides/scale.md": ("runs/first",),
    "docs/hub.md": ("runs/first",),
}


def write_panels(folder: Path) -> None:
    """Three images with a square each, in the layout of COCO 2017."""
    for split, count in (("train", 4), ("test", 1)):
        write_images(folder, **{split: count})
        content = {
            "images": [{"id": i, "file_name": f"{i:02d}.png", "width": 40, "height": 36} for i in range(count)],
            "categories": [{"id": 1, "name": "functional"}, {"id": 2, "name": "defective"}],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": 1 + i % 2,
                    "bbox": [5, 6, 20, 20],
                    "area": 400,
                    "iscrowd": 0,
                    "segmentation": [[5, 6, 25, 6, 25, 26, 5, 26]],
                }
                for i in range(count)
            ],
        }
        file = folder / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with images, a run on them, `runs/first`, and its file `first.onnx`."""
    folder = tmp_path_factory.mktemp("given")
    write_images(folder, **{"images/cat": 8, "images/dog": 8, "more_images": 2})
    shutil.copyfile(folder / "more_images" / "00.png", folder / "photo.jpg")
    run, onnx = str(folder / "runs" / "first"), str(folder / "first.onnx")
    assert main(["train", "--data", str(folder / "images"), "--out", run, *SHORTER["train"].split()]) == 0
    assert main(["export", run, "--out", onnx, "--check-images", "4"]) == 0
    return folder


@pytest.fixture
def tables() -> Iterator[None]:
    """Removes what an example adds to a table."""
    before = [(table, dict(table)) for table in (CHANNEL_ATTENTIONS, SPATIAL_ATTENTIONS, MIXERS, BACKENDS, DATA_SETS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.fixture
def begin(trained, tables, tmp_path, monkeypatch) -> Callable[[str], None]:
    """Puts what the reader of a page has into the current folder; ELPV is a thirtieth of itself."""

    def of_page(page: str) -> None:
        for name in ("images", "more_images"):
            shutil.copytree(trained / name, name)
        shutil.copy(trained / "photo.jpg", "photo.jpg")
        for name in GIVEN.get(page, ()):
            if name.startswith("runs/"):
                shutil.copytree(trained / "runs" / "first", name)
            elif name == "panels":
                write_panels(Path(name))
            elif name == "authors_t0.pth":
                stored = safetensors.torch.load_file(AUTHORS)
                weights = {k.removeprefix("weights."): v for k, v in stored.items() if k.startswith("weights.")}
                torch.save({"state_dict": weights}, name)
            else:
                torch.save(timm.create_model("patnet_t0", num_classes=5).state_dict(), name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    some = patnet.data.elpv.solar_cells()[::30]
    monkeypatch.setattr(patnet.data.elpv, "solar_cells", lambda: some)
    return of_page


@pytest.mark.parametrize("page", [page for page in PAGES if any(e.page == page for e in ALL)])
def test_parsed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in examples(page):
        if example.title:
            Path(example.title).write_text(example.code)
        if example.language in ("python", "sh"):
            try:
                parse_example(example, tmp_path)
            except (InputError, SystemExit) as error:
                pytest.fail(f"{example}: {error}")


def read(page: str, slow: bool) -> None:
    reader = Reader(slow)
    for example in examples(page):
        try:
            ran = reader.run(example)
        except Exception as error:
            raise AssertionError(f"{example}: {error}") from error
        if example.language in ("python", "sh"):
            assert ran == (example.mark is None or (slow and example.mark == "slow")), example


@pytest.mark.parametrize("page", sorted({e.page for e in ALL if e.mark is None}))
def test_run(page, begin):
    begin(page)
    read(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({e.page for e in ALL if e.mark == "slow"}))
def test_run_with_the_slow_ones(page, begin):
    begin(page)
    read(page, slow=True)


def test_examples_that_are_not_run_give_a_reason():
    for page in PAGES:
        marks = [line for line in (ROOT / page).read_text().splitlines() if line.lstrip().startswith("<!-- example")]
        found = examples(page)
        assert len(marks) == sum(example.mark is not None for example in found), f"{page}: a mark without a block"
        for example in found:
            assert example.language in LANGUAGES, f"{example}: {example.language!r} is not checked by the tests"
            if example.mark == "parsed only":
                assert example.reason, f"{example}: does not say why it is not run"
    assert len(ALL) > 40
    assert sum(example.mark is None for example in ALL) > len(ALL) / 2


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import patnet as"),
        ("sh", "if true; then"),
        ("sh", "patnet train --data images --out runs/a --epoch-count 3"),
        ("sh", "patnet train --recipe patnet_t9 --data images --out runs/a"),
        ("sh", "patnet train --data images --out runs/a --model patnet_t9"),
        ("sh", "patnet bench patnet_t2 --backends openvinos"),
        ("sh", "patnet export runs/a --out a.onnx --format openvino"),
        ("sh", "torchrun --nproc-per-node 2 -m patnet train --data images --out a --modle patnet_t0"),
        ("sh", "make tea"),
        ("sh", 'pip install "patnet[everything]"'),
        ("sh", "curl example.org"),
    ],
)
def test_a_wrong_example_is_found(language, code, tmp_path):
    with pytest.raises((InputError, AssertionError, SyntaxError, KeyError, SystemExit)):
        parse_example(Example("README.md", 1, language, None, None, None, code + "\n"), tmp_path)


def test_images_and_links_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert sum(link.endswith(".png") for link in links) >= 2
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert len(text.splitlines()) <= 170


WITHOUT_PYTORCH = """
import json, runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "patnet", "onnx", "scipy"):
            raise ImportError(name + " is not available")
sys.meta_path.insert(0, Refuse())
sys.argv = ["classify.py", *sys.argv[1:]]
runpy.run_path("classify.py", run_name="__main__")
assert "torch" not in sys.modules
"""


def test_the_program_without_pytorch_predicts_as_predict_does(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (program,) = (e for e in examples("docs/guides/onnx.md") if e.title == "classify.py")
    Path("classify.py").write_text(program.code)
    rng = np.random.default_rng(0)
    for i, (mode, size) in enumerate([("RGB", (201, 97)), ("RGB", (64, 64)), ("L", (90, 333))]):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3)[: len(shape)], dtype=np.uint8)).resize(size)
        coarse.save(f"{i}.png")
    files, onnx = ["0.png", "1.png", "2.png"], str(trained / "first.onnx")
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, onnx, *files], env=env, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    found = [line.split("\t") for line in answer.stdout.splitlines()]
    capfd.readouterr()
    assert main(["predict", onnx, *files, "--json"]) == 0
    expected = json.loads(capfd.readouterr().out)
    assert [row[0] for row in found] == files
    assert [row[1] for row in found] == [row["label"] for row in expected]
    assert [float(row[2]) for row in found] == pytest.approx([row["probability"] for row in expected], abs=2e-4)


@pytest.mark.parametrize(
    ("title", "package", "source", "out"),
    [
        ("to_ncnn.py", "pnnx", "first.onnx", ()),
        ("to_litert.py", "litert_torch", "runs/first", ("first.tflite",)),
        ("to_coreml.py", "coremltools", "runs/first", ("first.mlpackage",)),
    ],
)
def test_the_converters_for_other_runtimes(title, package, source, out, trained, tmp_path):
    pytest.importorskip(package)
    (program,) = (e for e in examples("docs/guides/phones.md") if e.title == title)
    shutil.copy(trained / "first.onnx", tmp_path)
    shutil.copytree(trained / "runs" / "first", tmp_path / "runs" / "first")
    words = [sys.executable, "-c", program.code, source, *out]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    if package == "coremltools":
        import coremltools

        converted = coremltools.models.MLModel(str(tmp_path / out[0]), skip_model_load=True)
        assert json.loads(converted.user_defined_metadata["patnet"])["label_names"] == ["cat", "dog"]
        assert list(converted.get_spec().description.input[0].type.multiArrayType.shape) == [1, 3, 64, 64]
    else:
        difference = re.search(r"largest difference: (\S+) of the largest logit", answer.stdout)
        assert difference, answer.stdout
        assert float(difference[1]) < 1e-5
