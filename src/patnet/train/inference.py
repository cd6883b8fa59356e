"""Using a trained network, from a run folder or any checkpoint, in one process or several."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from timm.data import resolve_data_config

from ..deploy import FORMATS, load_exported
from ..errors import InputError
from ..models.checkpoint import from_checkpoint, weights_file
from .fit import make_trainer
from .run import RunFolder

__all__ = ["Trained", "load_trained", "run_predict"]


EXPORTED = {entry.suffix for entry in FORMATS.values()}


@dataclass
class Trained:
    """A network with what belongs to it: preprocessing, class names, its run and its file, as far as there are such."""

    model: Any
    data_config: dict[str, Any]
    class_names: list[str]
    run: RunFolder | None
    file: Path | None = None


def load_trained(path: str | Path, which: str = "best") -> Trained:
    """Load the network of a run, or of any checkpoint.

    Args:
        path: A run folder, a checkpoint directory, a file of weights, `hf-hub:OWNER/NAME`, or a file that
            `patnet export` wrote.
        which: `"best"` or `"last"` weights of a run folder.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """
    path = Path(path)
    if path.suffix in EXPORTED and not path.is_dir():
        exported = load_exported(path)
        return Trained(exported, exported.info.data_config, exported.info.label_names, None, path)
    run = RunFolder(path) if (path / "config.yaml").is_file() else None
    directory = path / which if run and (path / which).is_dir() else path
    file = weights_file(directory)
    model: Any = from_checkpoint(directory if directory.exists() else file).eval()  # the Hub is asked once
    names = getattr(model, "pretrained_cfg", {}).get("label_names")
    if model.num_classes == 0:
        raise InputError(f"{path}: the checkpoint has no classifier, so it cannot name classes")
    class_names = list(names) if names else [str(i) for i in range(model.num_classes)]
    if len(class_names) != model.num_classes:
        raise InputError(f"{path}: names {len(class_names)} classes, but the network has {model.num_classes}")
    return Trained(model, resolve_data_config(model=model), class_names, run, file)


class _AsItIs:
    """Batches of a loader, of which Lightning would keep all indices."""

    def __init__(self, loader: Iterable) -> None:
        self.loader: Any = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader  # which starts with the first batch, for Lightning makes iterators that it does not use


def run_predict(
    module: L.LightningModule, make_loader: Any, callback: Callback, *, accelerator: str = "auto", devices: str = "1"
) -> bool:
    """Run `predict_step` over batches, in processes that Lightning or torchrun starts.

    Args:
        module: Whose `predict_step` or the callback keeps what comes of a batch.
        make_loader: Gives the batches of a process, for `world=` and `rank=`.
        callback: Shows the progress.
        accelerator: Device, as Lightning names it.
        devices: How many, as Lightning reads it.

    Returns:
        Whether this is the first process, which writes and prints.

    Raises:
        InputError: If there are no such devices.
        KeyboardInterrupt: On Ctrl-C.
    """
    trainer = make_trainer(
        accelerator,
        devices,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    loader = _AsItIs(make_loader(world=trainer.world_size, rank=trainer.global_rank))
    try:
        trainer.predict(module, loader, return_predictions=False)
    except SystemExit as stopped:
        if trainer.interrupted:
            raise KeyboardInterrupt from stopped
        raise
    return trainer.is_global_zero
