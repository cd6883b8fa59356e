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
from torch import Tensor
from torch.utils.data import IterableDataset
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)
from torchmetrics.utilities import dim_zero_cat

from ..data import PictureFiles, eval_transform, read_image
from ..data.loading import NOT_COUNTED, eval_loader
from ..errors import InputError
from ..files import sha256
from .classifier import Classifier
from .config import TrainConfig
from .figures import GREEN, RED, draw_confusion, draw_sheet, save_figure
from .fit import open_run_data
from .inference import load_trained, run_predict
from .progress import RunProgress
from .run import write_text
from .views import check_views

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


class _Answers(Metric):
    """Probabilities and labels of the pictures in the order of their indices, from all processes."""

    full_state_update = False
    probs: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("probs", "labels", "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, probs: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Take `(N, classes)` probabilities, `(N,)` labels and `(N,)` indices."""
        self.probs.append(probs)
        self.labels.append(labels)
        self.indices.append(indices)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Probabilities and labels."""
        order = dim_zero_cat(self.indices).argsort()
        return dim_zero_cat(self.probs)[order].cpu(), dim_zero_cat(self.labels)[order].cpu()


class _Evaluated(Classifier):
    """Keeps the answers of a network and the truth."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.metric = _Answers()

    def predict_step(self, batch: list[Any], batch_idx: int) -> Any:
        """Keep the answers of a batch, but not of what only fills it up."""
        probs, labels, indices = super().predict_step(batch, batch_idx)
        places = torch.tensor(indices, device=probs.device)
        counted = places != NOT_COUNTED
        truth = torch.tensor([int(label) for label in labels], device=probs.device)
        self.metric.update(probs[counted], truth[counted], places[counted])
        return probs

    def on_predict_epoch_end(self) -> None:
        """Gather while the processes are connected."""
        probs, labels = self.metric.compute()
        # A metric gives a single value as a scalar, so one picture would come without its dimension.
        self.probs, self.labels = probs.reshape(labels.numel(), -1), labels.reshape(-1)


def evaluate(
    run: str | Path,
    *,
    which: str = "best",
    views: int = 1,
    split: str | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 2,
    accelerator: str = "auto",
    devices: str = "1",
    console: Console | None = None,
) -> tuple[dict[str, Any], Path] | None:
    """Evaluate a run, and write figures and pictures into a folder.

    Each of several processes computes every so many-th batch; the figures are those of one process.

    Args:
        run: A run folder, or any checkpoint, then with `data`.
        which: `"best"` or `"last"` weights.
        views: Average over so many symmetries of a picture, 1, 2, 4 or 8.
        split: `"test"` or `"val"`; by default test where the data set has it.
        data: Another data set with the same classes.
        out: The folder; by default `evaluation-SPLIT` in the run.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        devices: How many, as Lightning reads it.
        console: Where to show progress.

    Returns:
        What `summarise` gives, and the folder; None in all processes but the first.

    Raises:
        InputError: If the run, the data or the folder cannot be used.
    """
    trained = load_trained(run, which)
    if trained.run is None and (data is None or out is None):
        raise InputError(f"{run}: is a checkpoint, not a run folder, so give --data and --out too")
    check_views(views, trained.data_config["input_size"])
    channels, size, _ = trained.data_config["input_size"]
    config = trained.run.read_config() if trained.run else TrainConfig(data=str(data), out=str(out), in_chans=channels)
    if data is not None and data != config.data:
        config = replace(config, data=data, cache_size=None)
    splits = open_run_data(config)
    if splits.masks:
        raise InputError(
            f"data set {config.data!r}: has masks and no classes to evaluate; start a run from {run} with --weights"
        )
    if splits.class_names != trained.class_names:
        raise InputError(
            f"data set {config.data!r}: its classes ({', '.join(splits.class_names[:5])}) are not those of {run} "
            f"({', '.join(trained.class_names[:5])})"
        )
    split = split or ("test" if splits.test is not None else "val")
    dataset = getattr(splits, split)
    if dataset is None:
        raise InputError(f"--split {split}: data set {config.data!r} has none; choose the other one")
    streamed = isinstance(dataset, IterableDataset)
    folder = Path(out) if out else Path(run) / f"evaluation-{split}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); give another --out") from error

    dataset.transform = eval_transform(trained.data_config)
    module = _Evaluated(trained.model)
    module.views = views

    def batches(world: int, rank: int) -> Any:
        if not streamed:
            return eval_loader(dataset, batch_size, world=world, rank=rank, num_workers=workers)
        if world > 1:
            raise InputError(f"data set {config.data!r}: is a stream, which one process reads; leave out --devices")
        return eval_loader(dataset, batch_size, num_workers=min(workers, 1))  # more would change the order

    progress = RunProgress(console or Console(stderr=True))
    if not run_predict(module, batches, progress, accelerator=accelerator, devices=devices):
        return None
    probs, truth = module.probs, module.labels
    if streamed and len(dataset) and len(probs) != len(dataset):
        raise InputError(
            f"data set {config.data!r}: gave {len(probs)} pictures where it announces {len(dataset)}; "
            "a part of it is damaged, copy it again"
        )
    result = {"run": str(run), "weights": which, "data": config.data, "split": split, "size": size, "views": views}
    # So that nobody takes these figures for those of other weights, after the run has gone on.
    result["weights_sha256"] = sha256(trained.file) if trained.file else None
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
            with torch.inference_mode():  # in which its reader was begun
                wanted |= {i: item[0] for i, item in enumerate(dataset) if i in wanted}
        else:
            wanted |= {i: dataset[i][0] for i in worst}
        pictures = list(wanted.values())
    title = f"Worst of {len(wrong)} mistakes in {len(truth)} pictures" if worst else "No mistakes"
    save_figure(draw_sheet(pictures, captions, [RED if worst else GREEN] * len(worst), title), file)
