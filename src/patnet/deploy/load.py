"""A network that was trained or exported, with what belongs to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config

from ..errors import InputError
from ..models.checkpoint import from_checkpoint, weights_file
from .export import FORMATS, load_exported

__all__ = ["EXPORTED", "LoadedNetwork", "load_network"]

# Endings of the files that `export` writes.
EXPORTED = {entry.suffix for entry in FORMATS.values()}


@dataclass
class LoadedNetwork:
    """A network with its preprocessing, its class names and the file that it comes from, if it does."""

    model: Any
    data_config: dict[str, Any]
    class_names: list[str]
    file: Path | None


def load_network(path: str | Path, which: str = "best") -> LoadedNetwork:
    """Load the network of a run, or of any checkpoint, in evaluation mode.

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
        return LoadedNetwork(exported, exported.info.data_config, exported.info.label_names, path)
    of_run = (path / "config.yaml").is_file() and (path / which).is_dir()
    directory = path / which if of_run else path
    file = weights_file(directory)
    model: Any = from_checkpoint(directory if directory.exists() else file).eval()  # the Hub is asked once
    names = getattr(model, "pretrained_cfg", {}).get("label_names")
    if model.num_classes == 0:
        raise InputError(f"{path}: the checkpoint has no classifier, so it cannot name classes")
    class_names = list(names) if names else [str(i) for i in range(model.num_classes)]
    if len(class_names) != model.num_classes:
        raise InputError(f"{path}: names {len(class_names)} classes, but the network has {model.num_classes}")
    return LoadedNetwork(model, resolve_data_config(model=model), class_names, file)
