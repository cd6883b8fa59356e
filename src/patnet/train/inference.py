"""Using a trained network, from a run folder or any checkpoint, in one process or several."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..deploy.load import LoadedNetwork, load_network
from .fit import make_trainer
from .run import RunFolder

__all__ = ["Trained", "load_trained", "run_predict"]


@dataclass
class Trained(LoadedNetwork):
    """A network with its preprocessing, its class names, and its run if there is one."""

    run: RunFolder | None


def load_trained(path: str | Path, which: str = "best") -> Trained:
    """Load the network of a run, or of any checkpoint; see `patnet.deploy.load.load_network`.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """
    network = load_network(path, which)
    run = RunFolder(path) if (Path(path) / "config.yaml").is_file() else None
    return Trained(network.model, network.data_config, network.class_names, network.file, run)


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
