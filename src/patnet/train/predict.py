"""Prediction for pictures in files, folders and globs."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from ..data import eval_transform, read_image, walk_pictures
from ..data.loading import eval_loader
from ..errors import InputError
from .classifier import Classifier
from .figures import BLUE, draw_sheet, save_figure
from .inference import load_trained, run_predict
from .progress import RunProgress
from .views import check_views

__all__ = ["Prediction", "predict"]

Prediction = dict[str, Any]


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


class _Kept(Classifier):
    """Keeps all answers."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.answers: list[tuple[Tensor, str]] = []

    def predict_step(self, batch: list[Any], batch_idx: int) -> Any:
        """Keep the answers of a batch."""
        probs, reasons, indices = super().predict_step(batch, batch_idx)
        self.answers += zip(probs.cpu(), reasons, strict=True)
        return probs, reasons, indices


def predict(
    run: str | Path,
    images: Sequence[str],
    *,
    which: str = "best",
    views: int = 1,
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
        views: Average over so many symmetries of a picture, 1, 2, 4 or 8.
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
    files = list(walk_pictures(images))
    if top < 1:
        raise InputError(f"--top {top}: must be at least 1")
    trained = load_trained(run, which)
    check_views(views, trained.data_config["input_size"])
    dataset = _Readable(files, eval_transform(trained.data_config), trained.data_config["input_size"])
    module = _Kept(trained.model)
    module.views = views
    run_predict(
        module,
        partial(eval_loader, dataset, batch_size, num_workers=workers),
        RunProgress(console or Console(stderr=True)),
        accelerator=accelerator,
    )
    predictions: list[Prediction] = []
    for file, (row, reason) in zip(files, module.answers, strict=True):
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
    return predictions, [reason for _, reason in module.answers if reason]
