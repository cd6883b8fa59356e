"""Detections in images: as results in COCO's format, and drawn."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import nms
from torchvision.transforms.v2 import functional as F

from ..data import ImageFiles, Unreadable, find_images
from ..data.coco import load_coco
from ..data.loading import PADDING, eval_loader
from ..errors import InputError
from ..files import distinct_stems, save_figure
from ..train.callbacks import progress_bar
from ..train.config import NonNegativeInt, PositiveInt, Probability
from ..train.predict import launch
from .checkpoint import DetectorLoaded
from .drawing import DPI, draw_detections
from .metrics import coco_results

Prediction = dict[str, Any]


def detect(
    loaded: DetectorLoaded, images: Sequence[Tensor], *, score_thresh: float = 0.5, nms_thresh: float | None = None
) -> list[dict[str, Tensor]]:
    """The detections of each image `(C, H, W)` in [0, 1] with scores above `score_thresh`, best first.

    Of detections whose boxes overlap by an IoU above `nms_thresh`, whatever their classes, the best is kept; without it
    the detector's own non-maximum suppression may keep an object as two classes.
    """
    kept = []
    with torch.inference_mode():
        detections = loaded.model(list(images))
    for found in detections:
        index = torch.nonzero(found["scores"] > score_thresh)[:, 0]
        if nms_thresh is not None:
            index = index[nms(found["boxes"][index].float(), found["scores"][index].float(), nms_thresh)]
        kept.append({key: value[index] for key, value in found.items()})
    return kept


def detect_all(
    loaded: DetectorLoaded,
    dataset: Dataset,
    fabric: Fabric,
    *,
    batch_size: int,
    workers: int,
    console: Console | None = None,
    **kwargs: Any,
) -> Iterator[tuple[int, Any, Tensor, dict[str, Tensor]]]:
    """The index, the label, the pixels `(C, H, W)` and the detections of each image of this process's share.

    The data set gives `(PIL image, label)`; the label of an image that cannot be read is then `Unreadable`. The
    detector is on the device of `fabric`; `kwargs` are the thresholds of `detect`.
    """
    options: dict[str, Any] = {"transform": F.pil_to_tensor, "policy": "report", "stack": False, "num_workers": workers}
    loader = eval_loader(dataset, batch_size, world=fabric.world_size, rank=fabric.global_rank, **options)
    console = (console or Console(stderr=True)) if fabric.is_global_zero else Console(quiet=True)
    with progress_bar(console) as bar:
        task = bar.add_task("detecting", total=len(loader))
        for images, labels, indices in loader:
            read = [i for i, label in enumerate(labels) if not isinstance(label, Unreadable)]
            found = detect(loaded, [images[i].to(fabric.device) / 255 for i in read], **kwargs) if read else []
            detections = dict(zip(read, found, strict=True))
            for i, index in enumerate(indices):
                if index != PADDING:
                    yield index, labels[i], images[i], detections.get(i, {})
            bar.advance(task)


def objects_of(
    loaded: DetectorLoaded, found: Mapping[str, Tensor], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """What `detect` finds in an image as `predict` gives it; by default the ids of labels are the detector's."""
    results = coco_results(0, {key: value.cpu() for key, value in found.items()}, category_ids or loaded.category_ids)
    return [
        {"label": loaded.class_names[label - 1], **{key: result[key] for key in result if key != "image_id"}}
        for label, result in zip(found["labels"].tolist(), results, strict=True)
    ]


def predict(
    loaded: DetectorLoaded,
    images: Sequence[str],
    *,
    score_thresh: Probability = 0.5,
    nms_thresh: Probability | None = None,
    out: str | os.PathLike | None = None,
    annotations: str | os.PathLike | None = None,
    batch_size: PositiveInt = 1,
    workers: NonNegativeInt = 0,
    accelerator: str = "auto",
    console: Console | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Detect objects in images of any size.

    Args:
        images: Image files, directories and glob patterns.
        score_thresh: See `detect`.
        nms_thresh: IoU above which the best of overlapping detections is kept, whatever their classes.
        out: Directory for each image as PNG with its detections; None draws nothing.
        annotations: A file in COCO's format that gives images and classes of the same names their ids. By default
            images are numbered from 1 in the order given, and classes have the ids that the detector was trained with.
        batch_size: Images per step.
        workers: Number of processes that load images.
        accelerator: Accelerator, as Lightning names it.

    Returns:
        For each readable image its `path`, `image_id`, `objects` and, if it was drawn, the file `drawn`; and one line
        for each image that cannot be read. An object has `label`, `category_id`, `score`, `bbox` as in COCO, `[x, y,
        width, height]` in px, and from a detector with masks `segmentation`, COCO's compressed run lengths.

    Raises:
        InputError: If a name matches no image, `annotations` lack an image or a class, `out` cannot be written, or a
            drawing would replace an image.
    """
    files = list(find_images(images))
    image_ids, category_ids = list(range(1, len(files) + 1)), loaded.category_ids
    if annotations is not None:
        image_ids, category_ids = _read_ids(files, loaded.class_names, annotations)
    stems = distinct_stems(files)
    if out is not None:
        drawings = {Path(out, f"{stem}.png").resolve() for stem in stems}
        if taken := next((file for file in files if file.resolve() in drawings), None):
            raise InputError(f"--out {out}: {taken.name} is one of the images; choose another directory")
    dataset, fabric = ImageFiles([(file, 0) for file in files], loaded.mode), launch(loaded.model, accelerator, "1")
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "console": console}
    options |= {"score_thresh": score_thresh, "nms_thresh": nms_thresh}
    predictions: list[Prediction] = []
    unreadable: list[str] = []
    for index, label, image, found in detect_all(loaded, dataset, fabric, **options):
        if isinstance(label, Unreadable):
            unreadable.append(str(label))
            continue
        objects = objects_of(loaded, found, category_ids)
        prediction = {"path": str(files[index]), "image_id": image_ids[index], "objects": objects}
        if out is not None:
            empty = f"no score above {score_thresh:g}"
            figure = draw_detections(F.to_pil_image(image), objects, found["labels"].tolist(), empty)
            prediction["drawn"] = str(save_figure(figure, Path(out) / f"{stems[index]}.png", DPI))
        predictions.append(prediction)
    return predictions, unreadable


def _read_ids(
    files: Sequence[Path], class_names: Sequence[str], annotations: str | os.PathLike
) -> tuple[list[int], list[int]]:
    """The ids of images and classes in a file in COCO's format; an image has the longest name that ends its path."""
    content = load_coco(Path(annotations))
    by_name = {row["file_name"]: row["id"] for row in content["images"]}
    image_ids = []
    for file in files:
        ends = ("/".join(file.parts[start:]) for start in range(len(file.parts)))
        found = next((by_name[end] for end in ends if end in by_name), None)
        if found is None:
            raise InputError(f"--annotations {annotations}: has no image {file.name}; give the file that has it")
        image_ids.append(found)
    classes = {row["name"]: row["id"] for row in content["categories"]}
    for name in class_names:
        if name not in classes:
            raise InputError(f"--annotations {annotations}: has no class {name!r}, which the detector has")
    return image_ids, [classes[name] for name in class_names]


def prediction_results(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as COCO's results, an entry for each object, which any evaluator of COCO takes."""
    return [
        {"image_id": p["image_id"], "file_name": p["path"], **{key: found[key] for key in found if key != "label"}}
        for p in predictions
        for found in p["objects"]
    ]
