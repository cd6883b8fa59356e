"""Evaluation of a trained detector: COCO's figures, curves, the best and the worst pictures."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..data.annotations import Annotations
from ..data.detection import DetectionPictures, open_annotations
from ..data.detection_loading import collate_pictures
from ..data.loading import NOT_COUNTED, eval_loader
from ..errors import InputError
from ..files import write_text
from ..train.figures import save_figure
from ..train.inference import run_predict
from ..train.progress import RunProgress
from ..train.run import RunFolder
from .checkpoint import load_detector
from .config import DetectConfig
from .evaluation import GatheredResults, evaluate_results, results_of, unclassed
from .figures import draw_best_and_worst, draw_precision_recall
from .fit import open_run_pictures

__all__ = ["evaluate"]


class _Evaluated(L.LightningModule):
    """Keeps what a detector finds.

    Attributes:
        results: Of all processes, in the order of the pictures.
        masks: Whether the detector gives masks.
    """

    def __init__(self, model: Any, category_ids: Sequence[int]) -> None:
        super().__init__()
        self.model, self.category_ids = model, category_ids
        self.gathered = GatheredResults()
        self.results: list[dict[str, Any]] = []
        self.masks = False

    def predict_step(self, batch: list[Any], batch_idx: int) -> list[dict[str, Tensor]]:
        """Keep the results of a batch, but not of what only fills it up."""
        pictures, targets, indices = batch
        found = self.model([F.to_dtype(picture.as_subclass(Tensor), scale=True) for picture in pictures])
        self.masks = "masks" in found[0]
        for one, target, index in zip(found, targets, indices, strict=True):
            if index != NOT_COUNTED:
                self.gathered.update(results_of(target["image_id"], one, self.category_ids))
        return found

    def on_predict_epoch_end(self) -> None:
        """Gather while the processes are connected."""
        self.results = self.gathered.compute()


def _check_classes(names: Sequence[str], trained: Sequence[str], data: str, run: str | Path) -> None:
    """Refuse data of other classes than the detector's."""
    if list(names) == list(trained):
        return
    if len(names) != len(trained):
        raise InputError(f"{data}: has {len(names)} classes, but {run} was trained on {len(trained)}; give its data")
    label = next(k for k, (a, b) in enumerate(zip(names, trained, strict=True)) if a != b)
    raise InputError(
        f"{data}: its class {label + 1} is {names[label]!r}, but {trained[label]!r} in {run}; give data of its classes"
    )


def _has_split(source: str, split: str) -> bool:
    """Whether a folder has a split, in COCO's format or Pascal VOC's."""
    coco = [file.stem.removeprefix("instances_") for file in Path(source, "annotations").glob("instances_*.json")]
    voc = [file.stem for file in Path(source, "ImageSets", "Main").glob("*.txt")]
    return split in {*coco, *(name.rstrip("0123456789") for name in coco), *voc}


def _open_own(run: RunFolder, images: str | None, split: str | None, max_faults: float) -> tuple[Annotations, str, str]:
    """The annotations of a run's own data, where they come from, and the split.

    `val` that the data does not have are the pictures by which the run chose its best epoch.
    """
    config = run.read_config(DetectConfig)
    if split is None:
        split = "test" if _has_split(config.data, "test") else "val"
    if split != "val" or _has_split(config.data, "val"):
        folder = images or config.images
        return open_annotations(config.data, folder, split=split, max_faults=max_faults), config.data, split
    held_out = open_run_pictures(config).val
    if held_out is None:
        raise InputError(f"{run.path}: its data {config.data} has no test or validation pictures; give --data")
    return held_out, config.val_data or config.data, split


def evaluate(
    run: str | Path,
    *,
    which: str = "best",
    data: str | None = None,
    images: str | None = None,
    split: str | None = None,
    class_agnostic: bool = False,
    out: str | Path | None = None,
    batch_size: int = 2,
    workers: int = 2,
    accelerator: str = "auto",
    devices: str = "1",
    max_faults: float = 0.01,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path] | None:
    """Evaluate a detector, and write figures and pictures into a folder.

    Each of several processes computes every so many-th batch; the figures are those of one process. Masks are evaluated
    where the detector gives them and every object has one.

    Args:
        run: A run folder, or a checkpoint of a detector, then with `data` and `out`.
        which: `"best"` or `"last"` weights.
        data: Other annotations with the same classes, a file or folder.
        images: The folder of their pictures, where it is not the usual one.
        split: Of a folder; by default `test` where it has one, else `val`, for which the run's own validation pictures
            stand in where its data has no such split.
        class_agnostic: Take all classes for one, see `patnet.detection.evaluation.unclassed`.
        out: The folder; by default `evaluation-SPLIT` in the run, or `evaluation-SPLIT-one-class`.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        devices: How many, as Lightning reads it.
        max_faults: Share of the annotations that may be wrong and are passed over.
        console: Where to show progress.

    Returns:
        What was evaluated, and for `box` and `mask` what `evaluate_results` gives, the curves left out; and the folder.
        None in all processes but the first.

    Raises:
        InputError: If the run, the data or the folder cannot be used.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: must be at least 1")
    trained = load_detector(run, which)
    if trained.run is None and (data is None or out is None):
        raise InputError(f"{run}: is a checkpoint, not a run folder, so give --data and --out too")
    if data is None and trained.run is not None:
        annotations, data, name = _open_own(trained.run, images, split, max_faults)
    else:
        assert data is not None
        if split is None:
            split = next((s for s in ("test", "val") if _has_split(data, s)), None)
        annotations = open_annotations(data, images, split=split, max_faults=max_faults)
        name = split or annotations.source.stem.removeprefix("instances_")
    _check_classes(annotations.class_names, trained.class_names, data, run)
    folder = Path(out) if out else Path(run) / f"evaluation-{name}{'-one-class' if class_agnostic else ''}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); give another --out") from error

    pictures = DetectionPictures(annotations, mode=trained.mode, masks=False)
    module = _Evaluated(trained.model, annotations.category_ids)

    def batches(world: int, rank: int) -> Any:
        return eval_loader(pictures, batch_size, world=world, rank=rank, collate=collate_pictures, num_workers=workers)

    progress = RunProgress(console or Console(stderr=True))
    if not run_predict(module, batches, progress, accelerator=accelerator, devices=devices):
        return None
    kinds = ["box", "mask"] if module.masks and annotations.has_masks else ["box"]
    truth, found = unclassed(annotations, module.results) if class_agnostic else (annotations, module.results)
    evaluated = evaluate_results(truth, found, kinds=kinds)
    result = {"run": str(run), "weights": which, "data": data, "split": name, "pictures": len(pictures)}
    result |= {"class_agnostic": class_agnostic, "results": len(module.results)}
    for kind, figures in evaluated.items():
        result[kind] = {key: value for key, value in figures.items() if key != "curves"}
    write_text(folder / "results.json", json.dumps(module.results) + "\n")
    write_text(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    write_text(folder / "per_class.csv", _table(evaluated))
    title = f"{run} ({which} weights) on {data}, {name}: {len(pictures)} pictures"
    save_figure(draw_precision_recall(evaluated, truth.class_names, title), folder / "precision_recall.png")
    save_figure(draw_best_and_worst(truth, found), folder / "best_and_worst.png")
    return result, folder


def _table(evaluated: dict[str, dict[str, Any]]) -> str:
    """The figures of each class as CSV; empty where there is nothing to measure."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["class", "objects", *(f"{kind}_{key}" for kind in evaluated for key in ("AP", "AP50"))])
    for name, row in evaluated["box"]["per_class"].items():
        rows = [figures["per_class"][name] for figures in evaluated.values()]
        writer.writerow([name, row["objects"], *(one[key] for one in rows for key in ("AP", "AP50"))])
    return table.getvalue()
