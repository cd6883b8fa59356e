"""One way to load: run directories, checkpoints, exported files, models of the Hub and of timm."""

import os
from pathlib import Path
from typing import Any

import timm

from .errors import InputError, nearest
from .models import PACKAGED, Loaded, Threshold, find_weights, load_checkpoint, preprocessing_of, read_config

__all__ = ["load"]

# Suffixes of checkpoints; a file with another suffix is an exported one.
_CHECKPOINT_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ""}


def load(name: str | os.PathLike, *, checkpoint: str = "best", threads: int | None = None, **kwargs: Any) -> Loaded:
    """Load a network with its class names and preprocessing, in evaluation mode.

    Args:
        name: A run directory, a checkpoint directory, a file of weights, a file that `patnet export` wrote,
            `hf-hub:OWNER/NAME`, a name in `patnet.models.PACKAGED`, or the name of a model of timm.
        checkpoint: `"best"` or `"last"`, of a run directory.
        threads: CPU threads of an exported file's backend; None for its own choice.
        **kwargs: For a classifier, arguments of `timm.create_model`; a model of timm has new random weights unless
            `pretrained=True` is among them. For a detector, options of `patnet.detection.load_detector`. An exported
            file takes none.

    Returns:
        For a detector, a `patnet.detection.DetectorLoaded`, which also has `category_ids`.

    Raises:
        InputError: If there is nothing of that name, or it cannot be read.
    """
    path = Path(name)
    if path.is_file() and path.suffix not in _CHECKPOINT_SUFFIXES:
        if kwargs:
            raise InputError(f"{path}: an exported file takes no {', '.join(kwargs)}; give what it was made from")
        return _load_exported(path, threads)
    if not path.exists() and timm.is_model(str(name)):
        return _load_timm(str(name), **kwargs)
    if not path.exists() and path.name == str(name) and name not in PACKAGED:
        hint = nearest(str(name), [*PACKAGED, *timm.list_models("patnet*"), *timm.list_models()])
        raise InputError(f"{name}: no such checkpoint, run directory or model of timm{hint}")
    file, _ = find_weights(name, checkpoint)
    if read_config(file).get("task") == "detection":
        from .detection import load_detector

        return load_detector(name, checkpoint, **kwargs)
    loaded = load_checkpoint(name, checkpoint, **kwargs)
    if not loaded.class_names and not kwargs:
        raise InputError(f"{name}: the checkpoint has no classifier; give num_classes=0 to load it without")
    return loaded


def _load_timm(name: str, pretrained: bool = False, **kwargs: Any) -> Loaded:
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # timm, torch and the Hub's client answer with many types
        first_line = str(error).partition("\n")[0]
        raise InputError(f"{name}: timm cannot make it ({first_line})") from error
    data_config = preprocessing_of(model)
    names = [str(label) for label in range(getattr(model, "num_classes", 0))]
    if not names and not kwargs:
        raise InputError(f"{name}: has no classifier; give num_classes=0 to load it without")
    return Loaded(model.eval(), names, data_config, pretrained=pretrained)


def _load_exported(path: Path, threads: int | None) -> Loaded:
    from .deploy import load_exported

    exported = load_exported(path, threads)
    info = exported.info
    threshold = None if info.threshold is None else Threshold(**info.threshold)
    about: dict[str, Any] = {"pretrained": info.pretrained, "threshold": threshold}
    return Loaded(exported, info.label_names, info.data_config, file=path, **about)
