"""Trained detectors in directories: `model.safetensors`, and a `config.json` that says how to build them."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import InputError
from ..train.run import RunFolder
from .backbone import in_chans
from .build import build

__all__ = ["TrainedDetector", "load_detector", "read_description", "save_detector", "start_from"]


@dataclass
class TrainedDetector:
    """A detector with what belongs to it.

    Attributes:
        model: In evaluation mode.
        class_names: Names of labels 1, 2, ...
        category_ids: Their ids in the annotations that it was trained with.
        run: The run that it comes from, if there is one.
    """

    model: Any
    class_names: list[str]
    category_ids: list[int]
    run: RunFolder | None = None

    @property
    def in_chans(self) -> int:
        """Channels of the pictures that it takes: 3 for colour, 1 for grey."""
        return in_chans(self.model.backbone.body)

    @property
    def mode(self) -> str:
        """Those of Pillow: `"RGB"` or `"L"`."""
        return "L" if self.in_chans == 1 else "RGB"


def save_detector(model: Any, directory: str | os.PathLike, *, class_names: list[str], category_ids: list[int]) -> Path:
    """Write `config.json` and `model.safetensors`, which `load_detector` reads.

    Each file is written aside and moved into place, so that an earlier checkpoint is never left half replaced.

    Args:
        model: Made by `build`, its arguments such as JSON can hold.
        directory: Where to; made if it does not exist.
        class_names: Of labels 1, 2, ...
        category_ids: Of the same, in the annotations.
    """
    described = {"build": model.build_args, "class_names": class_names, "category_ids": category_ids}
    text = json.dumps(described, indent=2) + "\n"
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as aside:
        # Weights may lie channels-last in memory, which safetensors does not write.
        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(weights, Path(aside) / "model.safetensors", {"format": "pt"})
        Path(aside, "config.json").write_text(text, encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            os.replace(Path(aside) / name, directory / name)
    return directory


def _find(path: Path, which: str) -> tuple[Path, RunFolder | None]:
    """The directory of a detector, and its run if there is one."""
    if not path.exists():
        raise InputError(f"{path}: no such run or checkpoint; patnet detect train makes one")
    run = RunFolder(path) if (path / "config.yaml").is_file() else None
    directory = path / which if run is not None else path
    if run is not None and not directory.is_dir():
        raise InputError(f"{path}: the run has not finished an epoch yet, so it holds no weights; resume it first")
    return directory, run


def read_description(path: str | os.PathLike, which: str = "best") -> dict[str, Any]:
    """What the checkpoint of a detector says of it: `build`'s arguments, `class_names` and `category_ids`.

    Raises:
        InputError: If there is no such checkpoint.
    """
    directory, _ = _find(Path(path), which)
    try:
        described = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        for key, kind in (("build", dict), ("class_names", list), ("category_ids", list)):
            if not isinstance(described[key], kind):
                raise TypeError(key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: holds no detector; give a run folder of patnet detect train, or its best/ or last/"
        ) from error
    return described


def _read(path: Path, which: str) -> tuple[dict[str, Tensor], dict[str, Any], RunFolder | None]:
    """Weights and description of a detector, and its run."""
    described = read_description(path, which)
    directory, run = _find(path, which)
    try:
        weights = safetensors.torch.load_file(directory / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{directory / 'model.safetensors'}: is missing, damaged or cut short; copy it again"
        ) from error
    return weights, described, run


def load_detector(path: str | os.PathLike, which: str = "best") -> TrainedDetector:
    """Load a trained detector.

    Args:
        path: A run folder of `patnet detect train`, or a directory that `save_detector` wrote.
        which: `"best"` or `"last"` weights of a run folder.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """
    weights, described, run = _read(Path(path), which)
    args = dict(described["build"])
    try:
        model = build(args.pop("detector"), **args)
        model.load_state_dict(weights)
    except (InputError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: its weights do not fit the detector that it describes ({reason})") from error
    names = [str(name) for name in described["class_names"]]
    if not len(names) == len(described["category_ids"]) == args["num_classes"]:
        raise InputError(f"{path}: names {len(names)} classes, but the detector has {args['num_classes']}")
    return TrainedDetector(model.eval(), names, [int(number) for number in described["category_ids"]], run)


def start_from(model: Any, path: str | os.PathLike) -> list[str]:
    """Give a new detector the weights of a trained one, as far as they fit: other classes have other outputs.

    Args:
        model: Made by `build`.
        path: As `load_detector` takes it.

    Returns:
        Names of the weights that stay as they were.

    Raises:
        InputError: If it is another kind of detector, or over another backbone.
    """
    weights, described, _ = _read(Path(path), "best")
    mine = model.build_args
    for key in ("detector", "backbone", "width"):
        if described["build"].get(key) != mine[key]:
            raise InputError(
                f"{path}: its {key} is {described['build'].get(key)}, not {mine[key]}; give --{key} "
                f"{described['build'].get(key)}, or another checkpoint"
            )
    own = model.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting]
