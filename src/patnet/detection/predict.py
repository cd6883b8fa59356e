"""What a trained detector finds in pictures: as results in COCO's format, and drawn."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import nms
from torchvision.transforms.v2 import functional as F

from ..data import read_image
from ..data.coco import load_coco
from ..errors import InputError
from ..train.figures import save_figure
from ..train.inference import run_predict
from ..train.predict import walk_pictures
from ..train.progress import RunProgress
from .checkpoint import load_detector
from .drawing import DPI, draw_detections
from .evaluation import results_of

__all__ = ["Prediction", "coco_results", "drawn_names", "objects_in", "predict"]

Prediction = dict[str, Any]


class _Readable(Dataset):
    """Pictures in files as bytes `(C, H, W)`; one that cannot be read gives the reason."""

    def __init__(self, files: Sequence[Path], mode: str) -> None:
        self.files = files
        self.mode = mode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, F.pil_to_tensor(read_image(self.files[index], self.mode)), ""
        except InputError as error:
            return index, None, str(error)


class _Detect(L.LightningModule):
    """Hands what is found in each picture on, and keeps why pictures cannot be read."""

    def __init__(self, model: Any, keep: Callable[[int, Tensor, dict[str, Tensor]], None]) -> None:
        super().__init__()
        self.model = model
        self.keep = keep
        self.unreadable: list[str] = []

    def predict_step(self, batch: list[tuple[int, Tensor | None, str]], batch_idx: int) -> int:
        """Detect in the pictures of a batch; gives how many could be read."""
        self.unreadable += [reason for _, _, reason in batch if reason]
        readable = [(index, picture) for index, picture, _ in batch if picture is not None]
        if readable:
            found = self.model([picture / 255 for _, picture in readable])
            for (index, picture), one in zip(readable, found, strict=True):
                self.keep(index, picture, one)
        return len(readable)


def drawn_names(files: Iterable[Path]) -> list[str]:
    """A name in PNG for each picture, the same for none: `photo.png`, then `photo-2.png`."""
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


def predict(
    run: str | os.PathLike,
    images: Sequence[str],
    *,
    which: str = "best",
    min_score: float = 0.5,
    max_overlap: float | None = None,
    out: str | os.PathLike | None = None,
    annotations: str | os.PathLike | None = None,
    batch_size: int = 1,
    workers: int = 0,
    accelerator: str = "auto",
    console: Console | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Objects in pictures of any size.

    Args:
        run: A run folder of `patnet detect train`, or a directory with a detector.
        images: Files, folders and glob patterns.
        which: `"best"` or `"last"` weights of a run folder.
        min_score: Objects with a score of no more are left out.
        max_overlap: Of objects whose boxes overlap by a larger IoU, whatever their classes, the best one is kept; None
            for what the detector gives, which may take one object for two classes.
        out: Folder for each picture as PNG with its objects drawn into it; None draws nothing.
        annotations: A file in COCO's format whose ids pictures and classes get, found by their names. By default
            pictures count from 1 in the order given, and classes have the ids that the detector learned them by.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        console: Where to show progress.

    Returns:
        For each readable picture its `path`, `image_id`, `objects` and, where one was asked for, the file `drawn`; a
        sentence for each picture that cannot be read. An object has `label`, `category_id`, `score`, `bbox` as COCO has
        it, `[x, y, width, height]` in px, and from a detector of masks `segmentation`, COCO's compressed run lengths.
        The best one comes first.

    Raises:
        InputError: If the detector cannot be used, a name means no picture, `annotations` lack a picture or a class,
            or `out` cannot be written.
    """
    files = list(walk_pictures(images))
    if not 0 <= min_score < 1:
        raise InputError(f"--min_score {min_score:g}: must lie in [0, 1)")
    if max_overlap is not None and not 0 <= max_overlap <= 1:
        raise InputError(f"--max_overlap {max_overlap:g}: must lie in [0, 1]")
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: must be at least 1")
    trained = load_detector(run, which)
    # What is below goes before its mask is spread over the whole picture, which takes the memory.
    getattr(trained.model, "roi_heads", trained.model).score_thresh = min_score
    image_ids, category_ids = list(range(1, len(files) + 1)), trained.category_ids
    if annotations is not None:
        image_ids, category_ids = _ids_of(files, trained.class_names, annotations)
    names = drawn_names(files)
    folder = None if out is None else _made(Path(out))
    predictions: list[Prediction] = []

    def keep(index: int, picture: Tensor, found: dict[str, Tensor]) -> None:
        if max_overlap is not None:
            kept = nms(found["boxes"].float(), found["scores"].float(), max_overlap)
            found = {key: value[kept] for key, value in found.items()}
        labels = found["labels"].tolist()
        objects = objects_in(found, trained.class_names, category_ids)
        prediction = {"path": str(files[index]), "image_id": image_ids[index], "objects": objects}
        if folder is not None:
            figure = draw_detections(F.to_pil_image(picture.cpu()), objects, labels, f"no score above {min_score:g}")
            try:
                prediction["drawn"] = str(save_figure(figure, folder / names[index], DPI))
            except OSError as error:
                raise InputError(f"--out {out}: cannot be written ({error.strerror or error}); give another") from error
        predictions.append(prediction)

    module = _Detect(trained.model, keep)
    dataset = _Readable(files, trained.mode)
    run_predict(
        module,
        lambda **_: DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=list),
        RunProgress(console or Console(stderr=True)),
        accelerator=accelerator,
    )
    return predictions, module.unreadable


def objects_in(
    found: Mapping[str, Tensor], class_names: Sequence[str], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """What a detector finds in a picture as `predict` gives it.

    Args:
        found: As torchvision's detectors give it.
        class_names: Of labels 1, 2, ...
        category_ids: Of the same.
    """
    results = results_of(0, {key: value.cpu() for key, value in found.items()}, category_ids)
    return [
        {"label": class_names[label - 1], **{key: result[key] for key in result if key != "image_id"}}
        for label, result in zip(found["labels"].tolist(), results, strict=True)
    ]


def _made(folder: Path) -> Path:
    """The folder, made before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror or error}); give another") from error
    return folder


def _ids_of(
    files: Sequence[Path], class_names: Sequence[str], annotations: str | os.PathLike
) -> tuple[list[int], list[int]]:
    """The ids that a file in COCO's format gives pictures and classes of these names.

    Of the file names, the one that is the longest end of a picture's path is its own.

    Raises:
        InputError: If the file cannot be read, or does not name one of them.
    """
    content = load_coco(Path(annotations))
    by_name = {row["file_name"]: row["id"] for row in content["images"]}
    image_ids = []
    for file in files:
        ends = ("/".join(file.parts[start:]) for start in range(len(file.parts)))
        found = next((by_name[end] for end in ends if end in by_name), None)
        if found is None:
            raise InputError(f"--annotations {annotations}: names no picture {file.name}; give the file that does")
        image_ids.append(found)
    classes = {row["name"]: row["id"] for row in content["categories"]}
    for name in class_names:
        if name not in classes:
            raise InputError(f"--annotations {annotations}: has no class {name!r}, which the detector finds")
    return image_ids, [classes[name] for name in class_names]


def coco_results(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
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
