"""Using a trained network: its probabilities for pictures, from a run folder or any checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.loading import eval_loader
from ..deploy import FORMATS, load_exported
from ..errors import InputError
from ..models.checkpoint import from_checkpoint
from .classifier import Classifier
from .fit import make_trainer
from .progress import RunProgress
from .run import RunFolder

__all__ = ["Trained", "load_trained", "probabilities"]


EXPORTED = {entry.suffix for entry in FORMATS.values()}


@dataclass
class Trained:
    """A network with what belongs to it: preprocessing, class names, and its run if there is one."""

    model: Any
    data_config: dict[str, Any]
    class_names: list[str]
    run: RunFolder | None


def load_trained(path: str | Path, which: str = "best") -> Trained:
    """Load the network of a run, or of any checkpoint.

    Args:
        path: A run folder, a checkpoint directory, a file of weights, or a file that `patnet export` wrote.
        which: `"best"` or `"last"` weights of a run folder.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """
    path = Path(path)
    if path.suffix in EXPORTED and not path.is_dir():
        exported = load_exported(path)
        return Trained(exported, exported.info.data_config, exported.info.label_names, None)
    run = RunFolder(path) if (path / "config.yaml").is_file() else None
    directory = path / which if run and (path / which).is_dir() else path
    model: Any = from_checkpoint(directory).eval()
    names = getattr(model, "pretrained_cfg", {}).get("label_names")
    if model.num_classes == 0:
        raise InputError(f"{path}: the checkpoint has no classifier, so it cannot name classes")
    class_names = list(names) if names else [str(i) for i in range(model.num_classes)]
    if len(class_names) != model.num_classes:
        raise InputError(f"{path}: names {len(class_names)} classes, but the network has {model.num_classes}")
    return Trained(model, resolve_data_config(model=model), class_names, run)


def probabilities(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    workers: int = 2,
    accelerator: str = "auto",
    console: Console | None = None,
) -> tuple[Tensor, list[Any]]:
    """Class probabilities of the pictures of a data set, in its order.

    Args:
        model: Gives logits for pictures.
        dataset: Gives a picture first, and whatever else after it.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        console: Where to show progress.

    Returns:
        `(N, classes)` on the CPU, and the rest of what the data set gave, an entry for each picture.
    """
    trainer = make_trainer(
        accelerator,
        "1",
        logger=False,
        enable_checkpointing=False,
        callbacks=[RunProgress(console or Console(stderr=True))],
    )
    batches: Any = trainer.predict(Classifier(model), eval_loader(dataset, batch_size, num_workers=workers))
    return torch.cat([probs for probs, _, _ in batches]).cpu(), [other for _, others, _ in batches for other in others]
