"""Detections in images: as results in COCO's format, and drawn."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torchvision.ops import nms
from torchvision.transforms.v2 import functional as F

from ..data import ImageFiles, Unreadable, find_images
from ..data.coco import load_coco
from ..data.loading import eval_loader
from ..errors import InputError
from ..files import save_figure
from ..train.config import NonNegativeInt, PositiveInt, Probability
from ..train.predict import launch
from ..train.progress import progress_bar
from .checkpoint import DetectorLoaded
from .drawing import DPI, draw_detections
from .metrics import coco_results

__all__ = ["Prediction", "detect", "drawing_names", "objects_of", "predict", "prediction_results"]

Prediction = dict[str, Any]


def detect(
    loaded: DetectorLoaded, images: Sequence[Tensor], *, score_thresh: float = 0.5, nms_thresh: float | None = None
) -> list[dict[str, Tensor]]:
    """The detections of each image, best first, as the detector gives them.

    Args:
        loaded: A detector.
        images: `(C, H, W)` in [0, 1].
        score_thresh: Detections with a score of no more are left out.
        nms_thresh: Of detections whose boxes overlap by a larger IoU, whatever their classes, the best is kept; None
            for the detector's own non-maximum suppression, which may keep an object as two classes.
    """
    with torch.inference_mode():
        detections = loaded.model(list(images))
    kept = []
    for found in detections:
        index = torch.nonzero(found["scores"] > score_thresh)[:, 0]
        if nms_thresh is not None:
            index = index[nms(found["boxes"][index].float(), found["scores"][index].float(), nms_thresh)]
        kept.append({key: value[index] for key, value in found.items()})
    return kept


def objects_of(
    loaded: DetectorLoaded, found: Mapping[str, Tensor], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The detections of an image as `predict` gives them.

    Args:
        loaded: The detector.
        found: What `detect` gives for the image.
        category_ids: Ids of labels 1, 2, ...; by default the detector's.
    """
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
        loaded: A detector.
        images: Image files, directories and glob patterns.
        score_thresh: See `detect`.
        nms_thresh: See `detect`.
        out: Directory for each image as PNG with its detections; None draws nothing.
        annotations: A file in COCO's format that gives images and classes of the same names their ids. By default
            images are numbered from 1 in the order given, and classes have the ids that the detector was trained with.
        batch_size: Images per step.
        workers: Number of processes that load images.
        accelerator: Accelerator, as Lightning names it.
        console: Where the progress bar is shown.

    Returns:
        For each readable image its `path`, `image_id`, `objects` and, if it was drawn, the file `drawn`; and one line
        for each image that cannot be read. An object has `label`, `category_id`, `score`, `bbox` as in COCO, `[x, y,
        width, height]` in px, and from a detector with masks `segmentation`, COCO's compressed run lengths.

    Raises:
        InputError: If a name matches no image, `annotations` lack an image or a class, or `out` cannot be written.
    """
    files = list(find_images(images))
    image_ids, category_ids = list(range(1, len(files) + 1)), loaded.category_ids
    if annotations is not None:
        image_ids, category_ids = _read_ids(files, loaded.class_names, annotations)
    names = drawing_names(files)
    directory = None if out is None else _make_directory(Path(out))
    predictions: list[Prediction] = []
    unreadable: list[str] = []
    fabric = launch(loaded.model, accelerator, "1")
    dataset = ImageFiles([(file, 0) for file in files], loaded.mode)
    options: dict[str, Any] = {"transform": F.pil_to_tensor, "policy": "report", "stack": False, "num_workers": workers}
    with progress_bar(console or Console(stderr=True)) as bar:
        task = bar.add_task("predicting", total=len(files))
        for tensors, labels, indices in eval_loader(dataset, batch_size, **options):
            unreadable += [label.reason for label in labels if isinstance(label, Unreadable)]
            read = [i for i, label in enumerate(labels) if not isinstance(label, Unreadable)]
            scaled = [tensors[i].to(fabric.device) / 255 for i in read]
            detections = detect(loaded, scaled, score_thresh=score_thresh, nms_thresh=nms_thresh) if read else []
            for i, found in zip(read, detections, strict=True):
                index, objects = indices[i], objects_of(loaded, found, category_ids)
                prediction = {"path": str(files[index]), "image_id": image_ids[index], "objects": objects}
                if directory is not None:
                    empty = f"no score above {score_thresh:g}"
                    figure = draw_detections(F.to_pil_image(tensors[i]), objects, found["labels"].tolist(), empty)
                    prediction["drawn"] = str(save_figure(figure, directory / names[index], DPI))
                predictions.append(prediction)
            bar.advance(task, len(indices))
    return predictions, unreadable


def drawing_names(files: Iterable[Path]) -> list[str]:
    """A different name in PNG for each image: `image.png`, then `image-2.png`."""
    taken: set[str] = set()
    names = []
    for file in files:
        number, name = 1, f"{file.stem}.png"
        while name.casefold() in taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        taken.add(name.casefold())
        names.append(name)
    return names


def _make_directory(directory: Path) -> Path:
    """Make it before anything is computed for it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {directory}: cannot be written ({error.strerror or error}); give another") from error
    return directory


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
        {
            "image_id": prediction["image_id"],
            "file_name": prediction["path"],
            **{key: value for key, value in found.items() if key != "label"},
        }
        for prediction in predictions
        for found in prediction["objects"]
    ]
