"""Reading files of weights: finding them, refusing what would run code, and the description next to them."""

import argparse
import contextlib
import io
import json
import os
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import InputError
from .hub import HUB, fetch
from .keys import native_state_dict
from .packaged import PACKAGED, describe_packaged, packaged_file

__all__ = ["UnsafeCheckpoint", "find_weights", "read_checkpoint", "read_config", "read_tensors"]

# Names of the file of weights in a checkpoint directory, as the Hub has them.
_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
# Modules of the classes and functions that torch allows with `weights_only=True`, as far as files of weights need them.
_ALLOWED = {
    *("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter", "collections", "_codecs"),
    *("numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy._core.multiarray"),
}
# A file in torch's format before 1.6 is five pickles in a row, the fourth of them the object.
_MOST_PICKLES = 5


class UnsafeCheckpoint(InputError):
    """A checkpoint that was refused because loading it would run code; a damaged one is an `InputError` alone."""


def find_weights(path: str | os.PathLike, checkpoint: str = "best") -> tuple[Path, Path | None]:
    """The file of weights that `path` names, and the run directory that it belongs to, if any.

    Args:
        path: A file, a checkpoint directory, a run directory, an entry of `PACKAGED`, or `hf-hub:OWNER/NAME`, which
            is downloaded.
        checkpoint: `"best"` or `"last"`, of a run directory.

    Raises:
        InputError: If there is no such file.
    """
    directory = fetch(str(path)) if str(path).startswith(HUB) else Path(path)
    if not directory.exists() and str(path) in PACKAGED:
        return packaged_file(str(path)), None
    if not directory.exists():
        raise InputError(f"{path}: no such checkpoint; give a file of weights or a directory with config.json")
    if directory.is_file():
        return directory, None
    run = directory if (directory / "config.yaml").is_file() else None
    for folder in (directory, directory / checkpoint):
        for name in _WEIGHTS_NAMES:
            if (folder / name).is_file():
                return folder / name, run
    if run and checkpoint not in ("best", "last"):
        raise InputError(f"{path}: a run has the checkpoints best and last, no {checkpoint!r}")
    if run:
        raise InputError(f"{path}: the run has not finished an epoch yet, so it has no weights; resume it first")
    raise InputError(f"{path}: the directory has no model.safetensors; give a checkpoint directory or a run directory")


def _globals_in(stream: IO[bytes]) -> list[str]:
    """Names of the classes and functions that the pickles of a stream would import, as far as the stream is intact."""
    found: list[str] = []
    strings: list[str] = []
    with contextlib.suppress(Exception):  # pickletools raises a dozen types, depending on the byte that is wrong
        for _ in range(_MOST_PICKLES):
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return [name for name in found if all(part.isidentifier() for part in name.split("."))]


def _refusal(file: Path) -> InputError:
    """The error for a file that could not be read as plain tensors, by what it contains; nothing in it is run."""
    imported: list[str] = []
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return InputError(f"{file}: a TorchScript program; give a checkpoint of weights")
            for name in names:
                if name.endswith("/data.pkl"):
                    imported = _globals_in(io.BytesIO(archive.read(name)))
    except Exception:  # no archive, or a damaged one
        with contextlib.suppress(OSError), file.open("rb") as stream:
            imported = _globals_in(stream)
    unsafe = [n for n in imported if n.rpartition(".")[0] not in _ALLOWED and n != "argparse.Namespace"]
    if unsafe:
        return UnsafeCheckpoint(
            f"{file}: refused because it is a pickle that would run code on loading ({unsafe[0]}); "
            "save the weights alone, as {name: tensor}"
        )
    return InputError(f"{file}: the checkpoint is damaged or cut short; copy it again")


def read_tensors(file: Path) -> Mapping[str, Any]:
    """The contents of a file of weights on the CPU, unchanged: `{key: tensor}`, perhaps with other entries.

    Raises:
        UnsafeCheckpoint: If it is a pickle that would run code on loading.
        InputError: If it cannot be read, is damaged, or is no mapping.
    """
    content: Any
    try:
        if file.suffix == ".safetensors":
            content = safetensors.torch.load_file(file)
        else:
            # timm's train.py saves its options with the weights, as a Namespace.
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # the errors below say the same
                content = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # the readers raise a dozen types, depending on the byte that is wrong
        raise _refusal(file) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__} instead of {{name: tensor}}")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """The `config.json` next to a file of weights in a checkpoint directory; empty if there is none.

    Raises:
        InputError: If it is not a JSON object.
    """
    path = file.with_name("config.json")
    if file.name not in _WEIGHTS_NAMES or not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a model configuration ({first_line}); copy it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model configuration, because it is no JSON object; copy it again")
    return config


def read_checkpoint(path: str | os.PathLike, checkpoint: str = "best") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under the names of our networks, and the description of the network that they belong to.

    Args:
        path: A `.safetensors` file, a directory with `config.json` and `model.safetensors`, a run directory, a
            Lightning checkpoint, a checkpoint of the authors, an entry of `PACKAGED`, or `hf-hub:OWNER/NAME`.
        checkpoint: `"best"` or `"last"`, of a run directory.

    Returns:
        `{key: tensor}` on the CPU, and a dictionary with `architecture` and `model_args`, empty if they are not known.

    Raises:
        UnsafeCheckpoint: If it is a pickle that would run code on loading.
        InputError: If it is missing or damaged, has no weights, or is a detector's.
    """
    file, _ = find_weights(path, checkpoint)
    described: Any = read_config(file)
    if described.get("task") == "detection":
        raise InputError(f"{file.parent}: holds a detector, not a classifier; patnet detect takes it")
    if described and "architecture" not in described:
        raise InputError(f"{file.parent}: its config.json names no architecture; copy it again")
    content = read_tensors(file)
    try:
        weights = native_state_dict(content)
    except RecursionError as error:
        raise InputError(f"{file}: the checkpoint contains itself; save the weights alone") from error
    if not weights:
        raise InputError(f"{file}: has no weights; a checkpoint maps names to tensors")
    if packaged := describe_packaged(file, weights):
        return packaged
    described = described or content.get("hyper_parameters")
    if not isinstance(described, dict) or "architecture" not in described:
        return weights, {}
    for key, wanted in (("architecture", str), ("model_args", dict), ("pretrained_cfg", dict)):
        if not isinstance(described.get(key, wanted()), wanted):
            raise InputError(f"{file}: its {key} is a {type(described[key]).__name__} instead of a {wanted.__name__}")
    return weights, described
