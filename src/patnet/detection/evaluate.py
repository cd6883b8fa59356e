"""Evaluation of a trained detector: COCO's metrics, curves, the best and the worst images."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from string import digits
from typing import Any

from rich.console import Console
from torchvision.models.detection import MaskRCNN

from ..data import DetectionDataset, Unreadable, check_unreadable, describe_unreadable, open_annotations
from ..data.annotations import Annotations
from ..data.labelme import is_labelme
from ..data.yolo import is_yolo
from ..errors import InputError
from ..files import atomic_write, make_directory, save_figure, sha256, write_text
from ..train import RunDirectory
from ..train.config import NonNegativeInt, PositiveInt, Probability
from ..train.predict import launch
from .checkpoint import DetectorLoaded
from .config import DetectConfig
from .data import open_splits, open_validation
from .figures import draw_best_and_worst, draw_precision_recall
from .metrics import coco_metrics, coco_results, gather_results, merge_classes
from .predict import detect_all

SPLITS = ("test", "val", "valid")  # the first that a folder has is evaluated


def evaluate(
    loaded: DetectorLoaded,
    *,
    data: str | None = None,
    images: str | None = None,
    split: str | None = None,
    class_agnostic: bool = False,
    out: str | Path | None = None,
    batch_size: PositiveInt = 1,
    workers: NonNegativeInt = 2,
    accelerator: str = "auto",
    devices: str = "1",
    max_invalid: Probability | None = None,
    max_unreadable: Probability = 0.01,
    checkpoint: str = "best",
    console: Console | None = None,
) -> tuple[dict[str, Any], Path] | None:
    """Evaluate a detector, and write metrics and figures into a directory.

    Each of several processes computes its share of the batches; the metrics are those of one process. Masks are
    evaluated if the detector gives them and every object has one. `checkpoint` is recorded.

    Args:
        loaded: A detector; unless it comes from a run directory, `data` and `out` are needed.
        data: Other annotations with the same classes, a file or a folder.
        images: Folder of their images, if not the usual one.
        split: Split of a folder; by default `test` if it has one, else `val` or `valid`. If the run's own data has
            none of them that it was not trained on, these are the images that the run held out.
        class_agnostic: Evaluate all classes as one, see `patnet.detection.metrics.merge_classes`.
        out: Directory for the results; by default `evaluation-SPLIT` in the run, or `evaluation-SPLIT-class-agnostic`.
        batch_size: Images per step; several are padded to one size, which may change the metrics slightly.
        workers: Number of processes that load images.
        accelerator: Accelerator, as Lightning names it.
        devices: Number of devices, one process for each.
        max_invalid: Share of the annotations that may be invalid and are skipped; by default 0.01, or that of the run
            for its own data.
        max_unreadable: Share of the images that may be unreadable and are left out.

    Returns:
        What was evaluated and, for `box` and `mask`, what `coco_metrics` gives without the curves; and the directory.
        None in all processes but the first.

    Raises:
        InputError: If the detector, the data or the directory cannot be used.
    """
    if loaded.run is None and (data is None or out is None):
        raise InputError(f"{loaded.file}: is not a run directory, so give --data and --out too")
    annotations, data, split = _open_data(loaded, data, images, split, max_invalid)
    _check_classes(annotations, loaded, data)
    suffix = "-class-agnostic" if class_agnostic else ""
    directory = make_directory(Path(out or f"{loaded.run}/evaluation-{split}{suffix}"))
    fabric = launch(loaded.model, accelerator, devices)
    dataset = DetectionDataset(annotations, mode=loaded.mode, masks=False)
    found: list[dict[str, Any]] = []
    options = {"batch_size": batch_size, "workers": workers, "console": console, "score_thresh": 0}
    unreadable: list[dict[str, Any]] = []
    for index, target, _, detections in detect_all(loaded, dataset, fabric, **options):
        if isinstance(target, Unreadable):
            unreadable.append({"image_id": annotations.images[index].id, "reason": str(target)})
        else:
            found += coco_results(target["image_id"], detections, annotations.category_ids)
    found, unreadable = gather_results(found), gather_results(unreadable)
    reasons = [image["reason"] for image in unreadable]
    if reasons:
        hint = "repair or remove them, or raise the limit"
        check_unreadable(len(reasons), len(annotations.images), max_unreadable, reasons[0], hint)
        annotations = annotations.without({image["image_id"] for image in unreadable})
    if not fabric.is_global_zero:
        return None
    if reasons:
        line = f"Warning: {describe_unreadable(reasons)}"
        (console or Console(stderr=True)).print(line, highlight=False, markup=False, soft_wrap=True)
    described: dict[str, Any] = {"run": str(loaded.run or loaded.file), "checkpoint": checkpoint, "data": data}
    described |= {"split": split, "unreadable": reasons}
    return _report(loaded, annotations, found, described, class_agnostic, directory), directory


def _report(
    loaded: DetectorLoaded,
    annotations: Annotations,
    found: list[dict[str, Any]],
    described: dict[str, Any],
    class_agnostic: bool,
    directory: Path,
) -> dict[str, Any]:
    """Compute the metrics of results, and write and draw them."""
    truth, results = merge_classes(annotations, found) if class_agnostic else (annotations, found)
    metrics = coco_metrics(truth, results, masks=isinstance(loaded.model, MaskRCNN) and truth.has_masks)
    result = described | {
        "images": len(annotations.images),
        "class_agnostic": class_agnostic,
        "results": len(found),
        # A run may be resumed after its evaluation; the digest says which weights these metrics are of.
        "weights_sha256": sha256(loaded.file) if loaded.file else None,
        **{name: {key: value for key, value in of.items() if key != "curves"} for name, of in metrics.items()},
    }
    write_text(directory / "results.json", json.dumps(found) + "\n")
    write_text(directory / "metrics.json", json.dumps(result, indent=2) + "\n")
    with atomic_write(directory / "per_class.csv") as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)  # empty where there is nothing to measure
        table.writerow(["class", "objects", *(f"{iou_type}_{key}" for iou_type in metrics for key in ("AP", "AP50"))])
        for name, row in metrics["box"]["per_class"].items():
            rows = [of["per_class"][name] for of in metrics.values()]
            table.writerow([name, row["objects"], *(one[key] for one in rows for key in ("AP", "AP50"))])
    title = f"{result['run']} on {result['data']}, {result['split']}: {result['images']} images"
    save_figure(draw_precision_recall(metrics, truth.class_names, title), directory / "precision_recall.png")
    save_figure(draw_best_and_worst(truth, results), directory / "best_and_worst.png")
    return result


def _open_data(
    loaded: DetectorLoaded, data: str | None, images: str | None, split: str | None, max_invalid: float | None
) -> tuple[Annotations, str, str]:
    """The annotations, where they come from, and the name of their split."""
    if data is not None:
        split = split or next((name for name in SPLITS if _has_split(data, name)), None)
        if split is None and any(_has_split(data, name) for name in ("train", "trainval")):
            raise InputError(f"{data}: has training images and no split {', '.join(SPLITS)}; give --split")
        limit = 0.01 if max_invalid is None else max_invalid
        annotations = open_annotations(data, images, split=split, max_invalid=limit)
        return annotations, data, split or annotations.source.stem.removeprefix("instances_")
    config = RunDirectory(str(loaded.run)).read_config(DetectConfig)
    if max_invalid is not None:
        config = replace(config, max_invalid=max_invalid)
    has_val = _has_split(config.data, "val")
    for name in [split] if split else [name for name in SPLITS if _has_split(config.data, name)]:
        if name == "val" and not has_val:
            break  # the images that the run held out
        is_validation = _is_validation(name, config)
        folder = images or (config.val_images if is_validation else None) or config.images
        found = open_annotations(config.data, folder, split=name, max_invalid=config.max_invalid)
        if split or is_validation or not _was_trained_on(found, config, images):
            return found, config.data, name
    if config.val_data is not None or config.val_split is not None:
        held_out = open_validation(replace(config, val_images=images or config.val_images))
    else:
        held_out = open_splits(replace(config, images=images or config.images)).val
    if held_out is None:
        raise InputError(
            f"{loaded.run}: its data {config.data} has no test or validation images that it was not trained on; "
            "give --data"
        )
    return held_out, config.val_data or config.data, "held-out" if has_val else "val"


def _was_trained_on(annotations: Annotations, config: DetectConfig, images: str | None) -> bool:
    """Whether some of the images are in a run's training split, which lists of Pascal VOC may share."""
    try:
        folder = images or config.images
        train = open_annotations(config.data, folder, split=config.train_split, max_invalid=None)
    except InputError:  # the training images are gone, so they are not these
        return False
    # In a folder of one split's images those of another may seem to exist by their names.
    of_train, own = ({(i.path, *(o.box for o in i.objects)) for i in of.images} for of in (train, annotations))
    return not of_train.isdisjoint(own)


def _is_validation(split: str, config: DetectConfig) -> bool:
    """Whether a split of a run's data is the one that it was validated on; of COCO's, either may have its year."""
    own = config.val_split
    if own is None or config.val_data is not None:
        return False
    return own == split or own.rstrip(digits) == split or own == split.rstrip(digits)


def _has_split(source: str, split: str) -> bool:
    """Whether a folder has a split, in the format that it is in."""
    root = Path(source)
    coco = [file.stem.removeprefix("instances_") for file in (root / "annotations").glob("instances_*.json")]
    voc = [file.stem for file in (root / "ImageSets" / "Main").glob("*.txt")]
    if split in {*coco, *(name.rstrip(digits) for name in coco), *voc}:
        return True
    if is_yolo(root):
        return any(folder.is_dir() for folder in (root / "images" / split, root / split / "images"))
    return is_labelme(root) and any((root / split).glob("*.json"))


def _check_classes(annotations: Annotations, loaded: DetectorLoaded, data: str) -> None:
    names, trained, source = annotations.class_names, loaded.class_names, loaded.run or loaded.file
    if len(names) != len(trained):
        raise InputError(f"{data}: has {len(names)} classes, but {source} was trained on {len(trained)}; give its data")
    for number, (name, expected) in enumerate(zip(names, trained, strict=True), start=1):
        if name != expected:
            raise InputError(
                f"{data}: its class {number} is {name!r}, but {expected!r} in {source}; give data of its classes"
            )
