"""Evaluation of a classifier: metrics, metrics of each class, confusion matrix, worst mistakes."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from operator import length_hint
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.utils.data import IterableDataset, Subset
from torchmetrics.functional.classification import (
    binary_recall_at_fixed_precision,
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from ..data import (
    DataSplits,
    ImageFiles,
    Unreadable,
    check_unreadable,
    describe_unreadable,
    distinct_names,
    eval_transform,
)
from ..data.loading import PADDING, eval_loader
from ..deploy import Exported
from ..errors import InputError, nearest
from ..files import make_directory, save_figure, sha256, write_text
from ..models import Loaded, Threshold, save_threshold
from .callbacks import progress_bar
from .config import NonNegativeInt, PositiveInt, Probability, TrainConfig
from .data import check_labels, open_run_data
from .figures import ERROR, HIT, draw_confusion, draw_image_grid
from .predict import Precision, check_classifier, class_probabilities, computed_in, launch
from .run import RunDirectory

ALL = "all"  # in place of a split's name


def choose_threshold(
    probs: Tensor, labels: Tensor, class_names: list[str], label: str, min_precision: float
) -> Threshold:
    """The threshold of a class with the highest recall at a precision of at least `min_precision`.

    Args:
        probs: Probabilities `(N, classes)` of validation images.
        labels: True classes `(N,)`.
        class_names: Names of the classes, in order.
        label: The class.
        min_precision: In [0, 1].

    Raises:
        InputError: If there is no such class, or no threshold has that precision.
    """
    if label not in class_names:
        known = ", ".join(class_names[:10])
        raise InputError(f"--threshold {label}: no such class{nearest(label, class_names)}; there are {known}")
    index = class_names.index(label)
    of_class, truth = probs[:, index], labels == index
    decided = torch.zeros_like(truth)
    if truth.any():
        recall, threshold = binary_recall_at_fixed_precision(of_class, truth.long(), min_precision)
        decided = of_class >= threshold
    if not (truth & decided).any():
        raise InputError(
            f"--threshold {label}: no threshold has a precision of {min_precision:g} on the {len(labels)} validation "
            f"images, {int(truth.sum())} of them of the class; lower --min-precision"
        )
    precision = (truth & decided).sum() / decided.sum()
    return Threshold(label, threshold.item(), precision.item(), recall.item())


def summarise(
    probs: Tensor, labels: Tensor, class_names: list[str], threshold: Threshold | None = None
) -> dict[str, Any]:
    """Metrics of predictions, through torchmetrics.

    Args:
        probs: Probabilities `(N, classes)`.
        labels: True classes `(N,)`.
        class_names: Names of the classes, in order.
        threshold: Decides in place of the largest probability.

    Returns:
        Shares in [0, 1]: `top1`, `top5` if there are more than five classes, `balanced_accuracy` (mean recall of the
        classes that have images), `calibration_error` (expected calibration error, 15 bins); `per_class` with
        precision, recall, F1 and number of images; `confusion_matrix`, whose rows are the true classes.
    """
    n = len(class_names)
    present = torch.bincount(labels, minlength=n)
    found = probs if threshold is None else threshold.order(probs, class_names)[:, 0]
    precision = multiclass_precision(found, labels, n, average="none").tolist()
    recall = multiclass_recall(found, labels, n, average="none")
    f1 = multiclass_f1_score(found, labels, n, average="none").tolist()
    result: dict[str, Any] = {"images": len(labels)}
    result["top1"] = multiclass_accuracy(found, labels, n, average="micro").item()
    if n > 5:
        result["top5"] = multiclass_accuracy(probs, labels, n, average="micro", top_k=5).item()
    result["balanced_accuracy"] = recall[present > 0].mean().item()
    result["calibration_error"] = multiclass_calibration_error(probs, labels, n, n_bins=15).item()
    rows = zip(precision, recall.tolist(), f1, present.tolist(), strict=True)
    names = ("precision", "recall", "f1", "images")
    classes = distinct_names(class_names)
    result["per_class"] = {c: dict(zip(names, row, strict=True)) for c, row in zip(classes, rows, strict=True)}
    result["confusion_matrix"] = multiclass_confusion_matrix(found, labels, n).tolist()
    return result


def evaluate(
    loaded: Loaded,
    *,
    data: str | None = None,
    split: Literal["test", "val"] | None = None,
    tta: Literal[1, 2, 4, 8] = 1,
    threshold: str | None = None,
    min_precision: Probability | None = None,
    precision: Precision | None = None,
    max_unreadable: Probability = 0.01,
    out: str | Path | None = None,
    batch_size: PositiveInt = 64,
    workers: NonNegativeInt = 2,
    accelerator: str = "auto",
    devices: str = "1",
    checkpoint: str = "best",
    console: Console | None = None,
) -> tuple[dict[str, Any], Path] | None:
    """Evaluate a classifier, and write metrics and figures into a directory.

    Args:
        loaded: A classifier, trained or exported.
        data: Data set with the same classes; by default that of the run. Of another one without test and validation
            images all are evaluated.
        split: `"test"` or `"val"`; by default test if the data set has it.
        tta: Test-time augmentation, the number of views of each image: 1, 2, 4 or 8.
        threshold: A class whose decision threshold is chosen on the validation images first, for the highest recall at
            `min_precision`, and kept with the weights: prediction and exported files use it from then on.
        min_precision: Smallest precision of the class on the validation images; by default 0.9.
        precision: `"fp32"`, `"bf16"` or `"fp16"` to compute in; by default fp32, of an exported file its own.
        max_unreadable: Share of the images that may be unreadable and are left out.
        out: Directory for the results; by default `evaluation-SPLIT` in the run directory, with TTA
            `evaluation-SPLIT-ttaN`. Other data than the run's need one.
        batch_size: Images per step.
        workers: Number of processes that load images.
        accelerator: Accelerator, as Lightning names it.
        devices: Number of devices, one process for each; the metrics are those of one process.
        checkpoint: Which checkpoint of the run was loaded, to be recorded.
        console: Where the progress bar is shown.

    Returns:
        What `summarise` returns, with what was evaluated, and the directory; None in all processes but the first.

    Raises:
        InputError: If the network, the data set or the directory cannot be used.
    """
    loaded = check_classifier(loaded, tta, precision)
    config, splits, split_name = _open_data(loaded, data, split, out)
    dataset = splits.train if split_name == ALL else getattr(splits, split_name)
    if threshold is not None and (isinstance(loaded.model, Exported) or loaded.file is None):
        raise InputError(
            f"--threshold {threshold}: is kept with the weights of a run; give the run, then export it again"
        )
    if threshold is None and min_precision is not None:
        raise InputError(f"--min-precision {min_precision}: belongs to --threshold; give that too, or leave it out")
    if threshold is not None and (tta > 1 or precision not in (None, "fp32")):
        given = f"--tta {tta}" if tta > 1 else f"--precision {precision}"
        raise InputError(
            f"--threshold {threshold}: is chosen in one view and fp32, as images are predicted; leave out {given}"
        )
    if threshold is not None and splits.val is None:
        raise InputError(f"--threshold {threshold}: is chosen on validation images, and there are none")
    views = f"-tta{tta}" if tta > 1 else ""
    directory = make_directory(Path(out or f"{loaded.run}/evaluation-{split_name}{views}"))
    with _launched(loaded, accelerator, devices) as fabric:
        console = (console or Console(stderr=True)) if fabric.is_global_zero else Console(quiet=True)
        if split_name == ALL:
            line = f"Note: {config.data} has no test/ or val/, so all its images count; if the network was trained on"
            line += " some, it is less accurate than this says"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if threshold is not None:
            found = _predict(loaded, splits.val, tta, batch_size, workers, max_unreadable, fabric, console)
            least = 0.9 if min_precision is None else min_precision
            chosen = choose_threshold(found.probs, found.labels, loaded.class_names, threshold, least)
            loaded = replace(loaded, threshold=chosen)
            if fabric.is_global_zero:
                save_threshold(chosen, cast(Path, loaded.file))
        found = _predict(loaded, dataset, tta, batch_size, workers, max_unreadable, fabric, console)
    if not fabric.is_global_zero:
        return None
    result = {
        "run": str(loaded.run or loaded.file),
        "checkpoint": checkpoint,
        "data": config.data,
        "split": split_name,
        "input_size": list(loaded.data_config["input_size"]),
        "tta": tta,
        "computed_in": computed_in(loaded),
        # A run may be resumed after its evaluation; the digest says which weights these metrics are of.
        "weights_sha256": sha256(loaded.file) if loaded.file else None,
        "threshold": None if loaded.threshold is None else asdict(loaded.threshold),
        **summarise(found.probs, found.labels, loaded.class_names, loaded.threshold),
        "unreadable": found.unreadable,
    }
    _write(directory, result)
    decided = loaded.order(found.probs)[:, 0]
    figure = draw_mistakes(found.dataset, found.probs, found.labels, loaded.class_names, decided)
    save_figure(figure, directory / "mistakes.png")
    return result, directory


@contextmanager
def _launched(loaded: Loaded, accelerator: str, devices: str) -> Iterator[Any]:
    """See `launch`; the network is moved back afterwards, so that the caller finds it on the device where it was."""
    device = next((weight.device for weight in loaded.model.parameters()), None)  # none in an exported file
    try:
        yield launch(loaded.model, accelerator, devices)
    finally:
        if device is not None:
            loaded.model.to(device)


def _write(directory: Path, result: dict[str, Any]) -> None:
    write_text(directory / "metrics.json", json.dumps(result, indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["class", "precision", "recall", "f1", "images"])
    writer.writerows([name, *row.values()] for name, row in result["per_class"].items())
    write_text(directory / "per_class.csv", table.getvalue())
    matrix = np.array(result["confusion_matrix"])
    run, top1 = Path(result["run"]).name, f"{100 * result['top1']:.1f} % correct"
    title = f"{run} on {result['data']}, {result['split']}: {top1}"
    save_figure(draw_confusion(matrix, list(result["per_class"]), title), directory / "confusion_matrix.png")


def _open_data(
    loaded: Loaded, data: str | None, split: str | None, out: str | Path | None
) -> tuple[TrainConfig, DataSplits, str]:
    """The options of the run, the data set, and the name of the split to evaluate."""
    if loaded.run is None and (data is None or out is None):
        raise InputError(f"{loaded.file}: is not a run directory, so give --data and --out too")
    if loaded.run is not None:
        config = RunDirectory(loaded.run).read_config(TrainConfig)
        own = data is None or os.path.realpath(data) == os.path.realpath(config.data)
    else:
        config = TrainConfig(data=str(data), out=str(out), in_chans=loaded.data_config["input_size"][0])
        own = False
    if not own:
        if out is None:
            raise InputError(f"--data {data}: is not the data set of the run, so give --out too")
        config = replace(config, data=str(data), cache_size=None, val_fraction=0.0)
    splits = open_run_data(config)
    if not splits.labelled:
        raise InputError(
            f"{config.data}: its images have no classes, so nothing can be evaluated; give others by --data"
        )
    if splits.class_names != loaded.class_names:
        theirs, ours = (", ".join(names[:5]) for names in (splits.class_names, loaded.class_names))
        raise InputError(f"data set {config.data!r}: its classes ({theirs}) are not those of the network ({ours})")
    present = [name for name in ("test", "val") if getattr(splits, name) is not None]
    if split is None and (present or not own):
        return config, splits, present[0] if present else ALL
    if split not in present:
        raise InputError(
            f"--split {split or 'test'}: data set {config.data!r} has no such images"
            + (f"; choose {present[0]}" if present else "; give another by --data")
        )
    return config, splits, split


def accuracy(loaded: Loaded, dataset: Any) -> tuple[float, int]:
    """The share of a data set's images whose decided class is right, computed on the CPU, and their number.

    Images that cannot be read are left out.
    """
    with _launched(loaded, "cpu", "1") as fabric:
        found = _predict(loaded, dataset, 1, 32, 0, 1.0, fabric, Console(quiet=True))
    right = loaded.order(found.probs)[:, 0] == found.labels
    return right.float().mean().item(), len(right)


class _Found(NamedTuple):
    """Probabilities `(N, classes)` and labels `(N,)` of a data set of readable images; a reason for each other one."""

    dataset: Any
    probs: Tensor
    labels: Tensor
    unreadable: list[str]


def _predict(
    loaded: Loaded,
    dataset: Any,
    tta: int,
    batch_size: int,
    workers: int,
    max_unreadable: float,
    fabric: Any,
    console: Console,
) -> _Found:
    """Predict the images of a data set, in its order, in all processes together."""
    options: dict[str, Any] = {"transform": eval_transform(loaded.data_config), "num_workers": workers}
    options["policy"] = "report"
    if isinstance(dataset, IterableDataset):
        if fabric.world_size > 1:
            raise InputError("the data set is a stream, which one process reads; leave out --devices")
        options["num_workers"] = min(workers, 1)  # more would change the order
    else:
        options |= {"world": fabric.world_size, "rank": fabric.global_rank}
    loader = eval_loader(dataset, batch_size, **options)
    rows: list[tuple[int, Any, Tensor]] = []
    with progress_bar(console) as bar:
        total = None if isinstance(dataset, IterableDataset) else len(loader)
        task = bar.add_task("evaluating", total=total)
        for images, labels, indices in loader:
            check_labels(labels, len(loaded.class_names))
            probs = class_probabilities(loaded.model, images.to(fabric.device), tta).cpu()
            found = zip(indices, labels, probs, strict=True)
            rows += [row for row in found if row[0] != PADDING]
            bar.advance(task)
    if fabric.world_size > 1:
        gathered: list[Any] = [None] * fabric.world_size
        dist.all_gather_object(gathered, rows)
        rows = [row for part in gathered for row in part]
    rows.sort(key=lambda row: row[0])
    if length_hint(dataset) not in (0, len(rows)):  # a stream
        raise InputError(
            f"the data set gave {len(rows)} images of the {len(dataset)} that it announces; "
            "a part of it is damaged, copy it again"
        )
    unreadable = [str(label) for _, label, _ in rows if isinstance(label, Unreadable)]
    if unreadable:
        hint = "repair or remove them, or raise the limit"
        check_unreadable(len(unreadable), len(rows), max_unreadable, unreadable[0], hint)
        console.print(f"Warning: {describe_unreadable(unreadable)}", highlight=False, markup=False, soft_wrap=True)
        rows = [row for row in rows if not isinstance(row[1], Unreadable)]
        indices = [row[0] for row in rows]
        dataset = dataset.subset(indices) if isinstance(dataset, ImageFiles) else Subset(dataset, indices)
    if not rows:
        raise InputError("the split has no images that can be read")
    return _Found(
        dataset, torch.stack([row[2] for row in rows]), torch.tensor([int(row[1]) for row in rows]), unreadable
    )


def draw_mistakes(
    dataset: Any, probs: Tensor, labels: Tensor, class_names: Sequence[str], predicted: Tensor | None = None
) -> Any:
    """A figure of the images whose predictions are wrong with the highest confidence, 18 at most.

    Args:
        dataset: Gives `(image, label)`; a stream is read again.
        probs: Probabilities `(N, classes)`, in the order of the data set.
        labels: True classes `(N,)`.
        class_names: Names of the classes, in order.
        predicted: Predicted classes `(N,)`; by default the most probable ones.
    """
    predicted = probs.argmax(dim=1) if predicted is None else predicted
    confidence = probs.gather(1, predicted[:, None])[:, 0]
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:18].tolist()
    captions = []
    for i in worst:
        name = f"{dataset.samples[i][0].name}\n" if isinstance(dataset, ImageFiles) else ""
        true, found = class_names[int(labels[i])], class_names[int(predicted[i])]
        captions.append(f"{name}{true}, predicted\n{found} ({100 * confidence[i]:.0f} %)")
    if isinstance(dataset, IterableDataset):
        found_images = {i: item[0] for i, item in enumerate(dataset) if i in set(worst)}
        images = [found_images[i] for i in worst]
    else:
        images = [dataset[i][0] for i in worst]
    title = f"Worst of {len(wrong)} mistakes in {len(labels)} images" if worst else "No mistakes"
    return draw_image_grid(images, captions, [ERROR if worst else HIT] * len(worst), title)
