"""Evaluation of a run: figures for the whole and for each class, confusion matrix, worst mistakes."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import IterableDataset
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from ..data import PictureFiles, eval_transform, read_image
from ..errors import InputError
from .config import TrainConfig
from .figures import GREEN, RED, draw_confusion, draw_sheet, save_figure
from .fit import open_run_data
from .inference import load_trained, probabilities
from .run import write_text

__all__ = ["evaluate", "summarise"]


def summarise(probs: torch.Tensor, labels: torch.Tensor, class_names: list[str]) -> dict[str, Any]:
    """Figures of merit, through torchmetrics.

    Args:
        probs: Probabilities `(N, classes)`.
        labels: True classes `(N,)`.
        class_names: In the order of the classes.

    Returns:
        Shares in [0, 1]: `top1`, `top5` where there are more than five classes, `balanced_accuracy` (the mean recall of
        the classes), `calibration_error` (expected, 15 bins); `per_class` with precision, recall, F1 and number of
        pictures; `confusion_matrix`, rows the true classes.
    """
    n = len(class_names)
    result: dict[str, Any] = {
        "pictures": len(labels),
        "top1": multiclass_accuracy(probs, labels, n, average="micro").item(),
    }
    if n > 5:
        result["top5"] = multiclass_accuracy(probs, labels, n, average="micro", top_k=5).item()
    present = torch.bincount(labels, minlength=n)
    recall = multiclass_recall(probs, labels, n, average="none")
    result["balanced_accuracy"] = recall[present > 0].mean().item()
    result["calibration_error"] = multiclass_calibration_error(probs, labels, n, n_bins=15).item()
    precision = multiclass_precision(probs, labels, n, average="none")
    f1 = multiclass_f1_score(probs, labels, n, average="none")
    result["per_class"] = {
        name: {
            "precision": precision[i].item(),
            "recall": recall[i].item(),
            "f1": f1[i].item(),
            "pictures": int(present[i]),
        }
        for i, name in enumerate(class_names)
    }
    result["confusion_matrix"] = multiclass_confusion_matrix(probs, labels, n).tolist()
    return result


def evaluate(
    run: str | Path,
    *,
    which: str = "best",
    split: str | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 2,
    accelerator: str = "auto",
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluate a run, and write figures and pictures into a folder.

    Args:
        run: A run folder, or any checkpoint, then with `data`.
        which: `"best"` or `"last"` weights.
        split: `"test"` or `"val"`; by default test where the data set has it.
        data: Another data set with the same classes.
        out: The folder; by default `evaluation-SPLIT` in the run.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        console: Where to show progress.

    Returns:
        What `summarise` gives, and the folder.

    Raises:
        InputError: If the run, the data or the folder cannot be used.
    """
    trained = load_trained(run, which)
    if trained.run is None and (data is None or out is None):
        raise InputError(f"{run}: is a checkpoint, not a run folder, so give --data and --out too")
    channels, size, _ = trained.data_config["input_size"]
    config = trained.run.read_config() if trained.run else TrainConfig(data=str(data), out=str(out), in_chans=channels)
    if data is not None and data != config.data:
        config = replace(config, data=data, cache_size=None)
    splits = open_run_data(config)
    if splits.class_names != trained.class_names:
        raise InputError(
            f"data set {config.data!r}: its classes ({', '.join(splits.class_names[:5])}) are not those of {run} "
            f"({', '.join(trained.class_names[:5])})"
        )
    split = split or ("test" if splits.test is not None else "val")
    dataset = getattr(splits, split)
    if dataset is None:
        raise InputError(f"--split {split}: data set {config.data!r} has none; choose the other one")
    folder = Path(out) if out else Path(run) / f"evaluation-{split}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); give another --out") from error

    dataset.transform = eval_transform(trained.data_config)
    probs, labels = probabilities(
        trained.model, dataset, batch_size=batch_size, workers=workers, accelerator=accelerator, console=console
    )
    truth = torch.tensor(labels)
    result = {"run": str(run), "weights": which, "data": config.data, "split": split, "size": size}
    result |= summarise(probs, truth, trained.class_names)
    write_text(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["class", "precision", "recall", "f1", "pictures"])
    writer.writerows([name, *row.values()] for name, row in result["per_class"].items())
    write_text(folder / "per_class.csv", table.getvalue())
    title = f"{config.model} on {config.data}, {split}: {100 * result['top1']:.1f} % of {len(truth)} right"
    matrix = np.array(result["confusion_matrix"])
    save_figure(draw_confusion(matrix, trained.class_names, title), folder / "confusion_matrix.png")
    _draw_mistakes(dataset, probs, truth, trained.class_names, folder / "mistakes.png")
    return result, folder


def _draw_mistakes(dataset: Any, probs: torch.Tensor, truth: torch.Tensor, names: list[str], file: Path) -> None:
    """A sheet of the pictures that the network got wrong with the most confidence."""
    confidence, predicted = probs.max(dim=1)
    wrong = (predicted != truth).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:18].tolist()
    captions = [
        f"{names[int(truth[i])]}, taken for\n{names[int(predicted[i])]} ({100 * confidence[i]:.0f} %)" for i in worst
    ]
    if isinstance(dataset, PictureFiles):
        files = [dataset.samples[i][0] for i in worst]
        pictures = [read_image(file) for file in files]
        captions = [f"{file.name}\n{caption}" for file, caption in zip(files, captions, strict=True)]
    else:
        dataset.transform = None  # a data set of timm's then gives the picture itself
        wanted: dict[int, Any] = dict.fromkeys(worst)
        if isinstance(dataset, IterableDataset):
            wanted |= {i: item[0] for i, item in enumerate(dataset) if i in wanted}
        else:
            wanted |= {i: dataset[i][0] for i in worst}
        pictures = list(wanted.values())
    title = f"Worst of {len(wrong)} mistakes in {len(truth)} pictures" if worst else "No mistakes"
    save_figure(draw_sheet(pictures, captions, [RED if worst else GREEN] * len(worst), title), file)
