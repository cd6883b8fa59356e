"""Compare five starts on ELPV: ImageNet weights, random weights, a distillation, painted defects, and the last two.

All starts get the same trials; `--plan` measures how long they take. Sizes end at 128 px: EfficientNet-Lite2, made for
260 px, would take five hours for 192 px on one core of an AMD EPYC (12 images/s; `--plan` says it with 192 in `SIZES`).
PATNet trains in bfloat16 where the processor has it; EfficientNet-Lite2 is slower in it, so in float32.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_recall_at_fixed_precision

from patnet import InputError, load
from patnet.bench.measure import Options, measure
from patnet.cli import main
from patnet.cli.tables import print_table
from patnet.data import DataSplits, default_cache_dir, eval_transform, read_image
from patnet.data.elpv import MEAN, STD, TWO_CLASSES, cell_images, solar_cells
from patnet.data.loading import eval_loader
from patnet.deploy.pytorch import has_bf16
from patnet.files import atomic_directory, write_text
from patnet.train import Interrupted, RunDirectory, TrainConfig, train
from patnet.train.callbacks import format_duration
from patnet.train.config import PositiveInt
from patnet.train.plan import plan as plan_run
from patnet.train.predict import class_probabilities

NAME = "examples/elpv/transfer.py"
SUMMARY = str(__doc__).partition("\n")[0]
EXAMPLES = """Examples:
  python examples/elpv/transfer.py --plan                                  how long each part takes here
  python examples/elpv/transfer.py --painted runs/painted                  all of it; the same command resumes
  python examples/elpv/transfer.py --starts b d --painted runs/painted
  python examples/elpv/transfer.py --page docs/elpv.md                     writes the table into the page

Each start gets the same trials of learning rate, image size and epochs, in cross-validation within the 1 968 training
cells; the best one by log loss is then trained on all of them with each seed, and tested once on the 656 test cells."""
EXTRA = ("elpv", ("elpv_dataset", "lightning", "torchmetrics", "jsonargparse", "rich"))

FOLDS = 2
RATES, SIZES, EPOCHS = (1e-4, 3e-4, 1e-3), (96, 128), (12, 24)
CROPS, CROP_SIDE, CROP_EPOCHS = 4, (0.5, 1.0), 8  # unlabelled crops of a cell, their side, epochs on them
BEGIN, END = "<!-- transfer.py: begin -->", "<!-- transfer.py: end -->"


@dataclass(frozen=True)
class Start:
    """What a network starts from: packaged weights, painted defects, a distillation from start `a`."""

    title: str
    model: str = "patnet_t0"
    weights: str | None = None
    painted: bool = False
    distilled: bool = False


STARTS = {
    "a": Start("EfficientNet-Lite2, ImageNet weights", "tf_efficientnet_lite2", "efficientnet-lite2"),
    "b": Start("PATNet-T0, random weights"),
    "c": Start("PATNet-T0, distilled from (a)", distilled=True),
    "d": Start("PATNet-T0, painted defects", painted=True),
    "e": Start("PATNet-T0, painted defects and distilled from (a)", painted=True, distilled=True),
}


@dataclass(frozen=True)
class Trial:
    """What cross-validation chooses."""

    lr: float = RATES[1]
    img_size: int = SIZES[0]
    epochs: int = EPOCHS[0]

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"lr{self.lr:g}-{self.img_size}px-{self.epochs}"


@dataclass
class Cells:
    """The solar cells of the study, by their indices in the data set.

    Args:
        count: Number of training cells and, by a third, of test cells; None for all.
        cache: Folder of the downsampled images.
    """

    count: int | None = None
    cache: Path = field(default_factory=default_cache_dir)

    @cached_property
    def labels(self) -> list[int]:
        """The class of each solar cell."""
        return [int(cell.probability >= 0.5) for cell in solar_cells()]

    def part(self, test: bool) -> list[int]:
        """Indices of the training or of the test cells."""
        found = [i for i, cell in enumerate(solar_cells()) if cell.test == test]
        count = len(found) if self.count is None else self.count // (3 if test else 1)
        return found[:: max(1, len(found) // count)][:count]

    def folds(self) -> list[tuple[list[int], list[int]]]:
        """Training and held-out cells of each fold, stratified by level and type of module."""
        cells, folds = solar_cells(), [[] for _ in range(FOLDS)]  # type: tuple[Any, list[list[int]]]
        order = np.random.default_rng(0).permutation(self.part(test=False)).tolist()
        for place, i in enumerate(sorted(order, key=lambda i: (cells[i].level, cells[i].module))):
            folds[place % FOLDS].append(i)
        return [(sorted(set(order) - set(fold)), sorted(fold)) for fold in folds]

    def images(self, indices: list[int], size: int) -> Any:
        """The images of solar cells at a side in px."""
        return cell_images(self.labels, "L", size, self.cache).subset(indices)

    def truth(self, indices: list[int]) -> Tensor:
        """The classes of solar cells."""
        return torch.tensor([self.labels[i] for i in indices])


@dataclass
class Study:
    """The runs below a directory; each is skipped where its result is there.

    Args:
        out: Directory of all runs.
        painted: Run of pretrain.py, for the starts that need it.
        options: Options of all runs, such as the accelerator.
        cells: The solar cells to train and test on.
        max_epochs: Upper limit of all epochs, to try the script.
        console: Where to print.
    """

    out: Path
    painted: str | None
    options: dict[str, Any]
    cells: Cells = field(default_factory=Cells)
    max_epochs: int | None = None
    console: Console = field(default_factory=Console)

    def config(self, start: Start, trial: Trial, out: Path, **options: Any) -> TrainConfig:
        """The options of a run: those of tuned.yaml, but for what is given."""
        recipe = yaml.safe_load(Path(__file__).with_name("tuned.yaml").read_text(encoding="utf-8"))
        epochs = min(trial.epochs, self.max_epochs or trial.epochs)
        warmup = min(recipe["warmup_epochs"], epochs / 2)
        recipe |= {"model": start.model, "lr": trial.lr, "img_size": trial.img_size, "cache_size": trial.img_size}
        recipe |= {"precision": precision_of(start.model)}
        return TrainConfig(
            **{**recipe, **self.options, "epochs": epochs, "warmup_epochs": warmup, **options, "out": str(out)}
        )

    def fit(self, config: TrainConfig, splits: DataSplits | None = None) -> None:
        """Train, or resume, unless the run is complete."""
        run, began = RunDirectory(config.out), time.monotonic()
        if (run.path / "complete").is_file():
            return
        train(config, splits=splits, resume=run.config.is_file(), console=Console(quiet=True))
        write_text(run.path / "complete", "")
        self.console.print(f"{run.path}  {format_duration(time.monotonic() - began)}", highlight=False)

    def train_cells(self, key: str, trial: Trial, out: Path, indices: list[int], seed: int, group: str) -> Path:
        """A run of a start on labelled cells, after the unlabelled crops of them if it is distilled.

        Args:
            group: Which runs of other starts saw the same cells, such as `fold-0`.
        """
        start, options = STARTS[key], {"seed": seed}  # type: tuple[Start, dict[str, Any]]
        options["weights"] = self.painted if start.painted else start.weights
        if start.painted and self.painted is None:
            raise InputError(f"start ({key}): give --painted, a run of pretrain.py (make elpv makes runs/painted)")
        if start.distilled:
            teacher = self.out / "a" / group
            if not (teacher / "complete").is_file():
                raise InputError(
                    f"start ({key}): learns from start (a), which {self.out} does not have completely; run it first"
                )
            options["weights"] = str(self.distil_crops(key, teacher, indices, seed, group, options["weights"]))
            options |= {"teacher": str(teacher), "distillation": "soft", "distill_alpha": 0.5, "distill_features": 1.0}
        splits = DataSplits(TWO_CLASSES, self.cells.images(indices, trial.img_size), None, mean=MEAN, std=STD)
        self.fit(self.config(start, trial, out, **options), splits)
        return out

    def distil_crops(
        self, key: str, teacher: Path, indices: list[int], seed: int, group: str, weights: str | None
    ) -> Path:
        """A network that has learned from the teacher on unlabelled crops."""
        folder, out = self.out / "crops" / group, self.out / key / f"crops-{group}"
        if not folder.is_dir():
            write_crops(folder, indices, seed)
        trial = Trial(epochs=CROP_EPOCHS)
        options: dict[str, Any] = {"data": str(folder), "cache_size": None, "weights": weights, "seed": seed}
        options |= {"teacher": str(teacher), "distillation": "soft", "distill_alpha": 1.0, "distill_features": 1.0}
        options |= {"mean": [MEAN], "std": [STD], "workers": 2 if self.options["workers"] else 0}
        self.fit(self.config(STARTS[key], trial, out, **options))
        return out

    def trials(self, key: str) -> Iterator[Trial]:
        """Learning rates, then image sizes at the best, then epochs at the best of both."""
        best = Trial()
        for name, values in (("lr", RATES), ("img_size", SIZES), ("epochs", EPOCHS)):
            candidates = [Trial(**{**vars(best), name: value}) for value in values]
            yield from candidates
            best = min(candidates, key=lambda trial: self.score(key, trial)["log_loss"])
        yield best  # the last one is the choice

    def score(self, key: str, trial: Trial) -> dict[str, float]:
        """Log loss and accuracy of the held-out cells of all folds."""
        file = self.out / key / trial.name / "score.json"
        if not file.is_file():
            found = []
            for number, (training, held_out) in enumerate(self.cells.folds()):
                out = file.parent / f"fold-{number}"
                self.train_cells(key, trial, out, training, 0, f"fold-{number}")
                found.append((self.predict(out, held_out, 1), self.cells.truth(held_out)))
            probs, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
            loss = F.nll_loss(probs.clamp_min(1e-7).log(), labels).item()
            result = {"log_loss": loss, "top1": (probs.argmax(1) == labels).float().mean().item()}
            write_text(file, json.dumps(result))
        return json.loads(file.read_text(encoding="utf-8"))

    def choose(self, key: str) -> Trial:
        """The trial with the smallest log loss; the folds' teachers are then those of start (a) with its own choice."""
        *_, best = self.trials(key)
        if key == "a":
            for number in range(FOLDS):
                link = self.out / "a" / f"fold-{number}"
                if not link.exists():
                    link.symlink_to(Path(best.name) / f"fold-{number}")
        return best

    def predict(self, run: Path, indices: list[int], tta: int) -> Tensor:
        """Probabilities `(N, 2)` of cells by the last weights of a run."""
        loaded = load(run, checkpoint="last")
        device = "cuda" if torch.cuda.is_available() and self.options["accelerator"] != "cpu" else "cpu"
        model = loaded.model.to(device)
        images = self.cells.images(indices, loaded.data_config["input_size"][-1])
        loader = eval_loader(images, 64, transform=eval_transform(loaded.data_config))
        return torch.cat([class_probabilities(model, batch.to(device), tta).cpu() for batch, *_ in loader])

    def test(self, key: str, trial: Trial, seed: int) -> dict[str, Any]:
        """The metrics of a seed on the test cells."""
        out = self.out / key / f"seed-{seed}"
        file = out / "test.json"
        if not file.is_file():
            self.train_cells(key, trial, out, self.cells.part(test=False), seed, f"seed-{seed}")
            indices = self.cells.part(test=True)
            labels = self.cells.truth(indices)
            one, eight = (self.predict(out, indices, tta) for tta in (1, 8))
            recall, _ = binary_recall_at_fixed_precision(one[:, 1], labels, min_precision=0.9)
            result = {f"top1_{n}": (p.argmax(1) == labels).float().mean().item() for n, p in ((1, one), (8, eight))}
            result |= {"auc": binary_auroc(one[:, 1], labels).item(), "recall_at_90": recall.item()}
            write_text(file, json.dumps(result))
        return json.loads(file.read_text(encoding="utf-8"))

    def run(self, keys: str, seeds: int) -> None:
        """All trials and tests of some starts; distilled ones need start (a)."""
        for key in keys:
            best = self.choose(key)
            for seed in range(seeds):
                self.test(key, best, seed)
            chosen = {**vars(best), **self.score(key, best)}
            write_text(self.out / key / "chosen.json", json.dumps(chosen))
            self.console.print(f"({key}) {STARTS[key].title}: {chosen}", highlight=False)

    def parts(self, keys: str, seeds: int) -> Iterator[tuple[str, str, TrainConfig, int]]:
        """Start, part, options and images per epoch of all runs, with the largest size and number of epochs."""
        count, largest = len(self.cells.part(test=False)), Trial(img_size=max(SIZES), epochs=max(EPOCHS))
        fold, sizes = count - count // FOLDS, [Trial(img_size=size) for size in SIZES[1:]]
        steps = [*(Trial(rate) for rate in RATES), *sizes, largest]
        for key in keys:
            teacher = {"teacher": "a", "distill_features": 1.0} if STARTS[key].distilled else {}
            for trial, _ in product(steps, range(FOLDS)):
                yield key, "cross-validation", self.config(STARTS[key], trial, self.out, **teacher), fold
            for _ in range(seeds):
                yield key, "final runs", self.config(STARTS[key], largest, self.out, **teacher), count
            crops = [fold] * FOLDS + [count] * seeds if teacher else []
            for images in crops:
                config = self.config(STARTS[key], Trial(epochs=CROP_EPOCHS), self.out, **teacher)
                yield key, "unlabelled crops", config, CROPS * images


def precision_of(model: str) -> str:
    """The precision that trains a model fastest on this processor."""
    return "bf16-mixed" if model.startswith("patnet") and has_bf16() else "32-true"


# GMACs at 128 px, as `patnet train --plan` counts them; a training step's are three times the network's.
GMACS = {"patnet_t0": 0.087, "tf_efficientnet_lite2": 0.185}


def write_crops(folder: Path, indices: list[int], seed: int) -> None:
    """Write random crops of solar cells as images without classes."""
    cells, rng = solar_cells(), np.random.default_rng(seed)
    with atomic_directory(folder) as directory:
        for i, number in product(indices, range(CROPS)):
            image = read_image(cells[i].path, "L")
            side = round(image.width * rng.uniform(*CROP_SIDE))
            left, top = rng.integers(0, image.width - side + 1, 2).tolist()
            crop = image.crop((left, top, left + side, top + side))
            crop.resize((160, 160), Image.Resampling.BICUBIC).save(directory / f"{i:04d}-{number}.png")


def latencies(study: Study, keys: list[str], seconds: float = 60.0) -> dict[str, tuple[float, str]]:
    """ms of one image in the fastest runtime, float32, one thread, and its name; all networks in interleaved rounds."""
    runs = {key: str(study.out / key / "seed-0" / "last") for key in keys}
    rows = measure(Options(models=[*runs.values()], precision=["fp32"], seconds=seconds), say=lambda _: None)["rows"]
    found: dict[str, tuple[float, str]] = {}
    for key, run in runs.items():
        measured = [row for row in rows if row["model"] == run and row.get("median_ms")]
        best = min(measured, key=lambda row: row["median_ms"])
        found[key] = best["median_ms"], best["backend"]
    return found


def table(study: Study, seeds: int) -> str:
    """The results of the starts that are complete, in Markdown."""
    head = (
        "start",
        "chosen: lr, px, epochs",
        "log loss, cross-validation",
        "one view, %",
        "eight views, %",
        "AUC",
        "recall at 90 % precision, %",
        "ms",
    )
    rows = ["| " + " | ".join(head) + " |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    complete = [key for key in STARTS if (study.out / key / "chosen.json").is_file()]
    speed = latencies(study, complete) if complete else {}
    for key in complete:
        chosen = json.loads((study.out / key / "chosen.json").read_text(encoding="utf-8"))
        files = [study.out / key / f"seed-{seed}" / "test.json" for seed in range(seeds)]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]

        def mean(name: str, scale: float = 100, digits: int = 2, found: Any = found) -> str:
            values = [scale * result[name] for result in found]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"

        trial = f"{chosen['lr']:g}, {chosen['img_size']}, {chosen['epochs']}"
        columns = (f"{chosen['log_loss']:.3f}", mean("top1_1"), mean("top1_8"), mean("auc", 1, 4), mean("recall_at_90"))
        ms, backend = speed[key]
        rows.append(f"| ({key}) {STARTS[key].title} | {trial} | {' | '.join(columns)} | {ms:.2f} ({backend}) |")
    return "\n".join(rows)


def write_page(page: Path, text: str) -> None:
    """Replace what is between the marks of a page."""
    content = page.read_text(encoding="utf-8")
    if BEGIN not in content or END not in content:
        raise InputError(f"{page}: lacks the marks {BEGIN} and {END}")
    before, after = content.partition(BEGIN)[0], content.partition(END)[2]
    write_text(page, f"{before}{BEGIN}\n{text}\n{END}{after}")


def print_plan(study: Study, keys: str, seeds: int, seconds: float) -> None:
    """Measure images/s of each kind of run, and print the hours of each part, at most."""
    rates: dict[tuple[str, int], float] = {}
    for model, size in product({STARTS[key].model for key in keys}, SIZES):
        start = next(s for s in STARTS.values() if s.model == model)
        config = study.config(start, Trial(img_size=size), study.out, weights=None)
        rates[model, size] = plan_run(config, seconds=seconds, console=study.console)["phases"][0]["together"]
    hours: dict[tuple[str, str], float] = {}
    for key, part, config, count in study.parts(keys, seeds):
        teacher = GMACS["tf_efficientnet_lite2"] / (3 * GMACS[config.model]) if config.teacher else 0.0
        took = count * config.epochs * (1 + teacher) / rates[config.model, config.img_size] / 3600
        hours[key, part] = hours.get((key, part), 0.0) + took
    print_table(("model", "size, px", "images/s"), [(*key, f"{rate:.0f}") for key, rate in rates.items()])
    rows = [(f"({key}) {STARTS[key].title}", part, f"{took:.1f}") for (key, part), took in hours.items()]
    print_table(("start", "part", "hours, at most"), [*rows, ("in all", "", f"{sum(hours.values()):.1f}")], left=2)
    print("Starts (d) and (e) need --painted too: see python examples/elpv/pretrain.py --recipe painted --plan")


def run(
    *,
    out: str = "runs/transfer",
    starts: list[str] = list(STARTS),  # noqa: B006  # read only
    painted: str | None = None,
    seeds: PositiveInt = 3,
    page: str | None = None,
    plan: bool = False,
    plan_seconds: float = 20.0,
    cells: PositiveInt | None = None,
    max_epochs: PositiveInt | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
    workers: int = 1,
    cache_dir: str | None = None,
) -> int:
    """Run what is not done yet, and print the table.

    Args:
        out: Directory of all runs.
        starts: Some of a, b, c, d, e; c and e need a.
        painted: Run directory of pretrain.py, for d and e.
        seeds: Number of seeds of the final runs.
        page: Only write the table of the results in --out into this page, between its marks.
        plan: Only measure, and print how long each part takes at most.
        plan_seconds: How long --plan measures each network at each size, in s.
        cells: Number of training cells, to try the script.
        max_epochs: Upper limit of the epochs, to try the script.
        accelerator: Device type, as Lightning names it.
        precision: Precision of the training, as Lightning names it; by default bf16-mixed of PATNet where the processor
            has it, else 32-true.
        workers: Loader processes.
        cache_dir: Folder of the downsampled images.
    """
    keys = "".join(sorted(set(starts)))
    if set(keys) - set(STARTS):
        raise InputError(f"--starts {' '.join(starts)}: choose from {', '.join(STARTS)}")
    options = {"accelerator": accelerator, "workers": workers, "cache_dir": cache_dir}
    options |= {} if precision is None else {"precision": precision}
    chosen = Cells(cells, Path(cache_dir or default_cache_dir()))
    study = Study(Path(out), painted, options, chosen, max_epochs, Console(soft_wrap=True))
    if plan:
        print_plan(study, keys, seeds, plan_seconds)
        return 0
    if page is None:
        try:
            study.run(keys, seeds)
        except Interrupted as stopped:
            study.console.print("Interrupted. The same command resumes.")
            return stopped.exit_code
    text = table(study, seeds)
    print(text)
    if page is not None:
        write_page(Path(page), text)
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
