"""Prediction for pictures in files, folders and globs."""

from collections.abc import Callable, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from ..data import IMAGE_SUFFIXES, eval_transform, read_image
from ..errors import InputError
from .figures import BLUE, draw_sheet, save_figure
from .inference import load_trained, probabilities

__all__ = ["Prediction", "find_pictures", "predict"]

Prediction = dict[str, Any]


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """The picture files that names of files and folders and glob patterns mean, each once, in that order.

    Raises:
        InputError: If a name means nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not files:
                raise InputError(f"{path}: the folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        elif path.exists():
            files = [path]
        elif has_magic(pattern):
            files = sorted(p for p in map(Path, glob(pattern, recursive=True)) if p.is_file())
            if not files:
                raise InputError(f"{pattern}: no file matches the pattern")
        else:
            raise InputError(f"{path}: no such picture")
        found |= dict.fromkeys(files)
    return list(found)


class _Readable(Dataset):
    """Pictures in files; one that cannot be read gives zeros and the reason."""

    def __init__(self, files: Sequence[Path], transform: Callable, shape: tuple[int, int, int]) -> None:
        self.files = files
        self.transform = transform
        self.shape = shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            return self.transform(read_image(self.files[index], "L" if self.shape[0] == 1 else "RGB")), ""
        except InputError as error:
            return torch.zeros(self.shape), str(error)


def predict(
    run: str | Path,
    images: Sequence[str],
    *,
    which: str = "best",
    top: int = 5,
    sheet: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    accelerator: str = "auto",
    console: Console | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Classes and probabilities of pictures, with the preprocessing of the checkpoint.

    Args:
        run: A run folder, or any checkpoint.
        images: Files, folders and glob patterns.
        which: `"best"` or `"last"` weights of a run folder.
        top: How many classes to give for each picture.
        sheet: PNG file with the pictures and their answers.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        console: Where to show progress.

    Returns:
        For each readable picture `path`, `label`, `probability` and `top`, the `top` likeliest classes with their
        probabilities; and a sentence for each picture that cannot be read.

    Raises:
        InputError: If the checkpoint cannot be used, or a name means no picture.
    """
    files = find_pictures(images)
    if top < 1:
        raise InputError(f"--top {top}: must be at least 1")
    trained = load_trained(run, which)
    dataset = _Readable(files, eval_transform(trained.data_config), trained.data_config["input_size"])
    probs, reasons = probabilities(
        trained.model, dataset, batch_size=batch_size, workers=workers, accelerator=accelerator, console=console
    )
    predictions: list[Prediction] = []
    for file, row, reason in zip(files, probs, reasons, strict=True):
        if reason:
            continue
        values, indices = row.topk(min(top, len(row)))
        ranked = [
            {"label": trained.class_names[i], "probability": p}
            for i, p in zip(indices.tolist(), values.tolist(), strict=True)
        ]
        predictions.append({"path": str(file), **ranked[0], "top": ranked})
    if sheet and predictions:
        shown = predictions[:24]
        captions = [f"{Path(p['path']).name}\n{p['label']} ({100 * p['probability']:.0f} %)" for p in shown]
        pictures = [read_image(p["path"], "RGB") for p in shown]
        try:
            save_figure(draw_sheet(pictures, captions, [BLUE] * len(shown), f"What {Path(run)} sees"), Path(sheet))
        except (OSError, ValueError) as error:
            raise InputError(f"--sheet {sheet}: cannot be written ({error})") from error
    return predictions, [reason for reason in reasons if reason]
