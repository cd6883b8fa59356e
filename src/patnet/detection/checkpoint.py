"""Checkpoints of detectors: `model.safetensors`, and a `config.json` with the arguments that build the detector."""

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from ..errors import InputError
from ..files import atomic_write
from ..models import Loaded, find_weights, read_config, read_tensors
from ..models.checkpoint import adapt_stem
from .build import build

logger = logging.getLogger("patnet")


@dataclass(frozen=True)
class DetectorLoaded(Loaded):
    """A detector that was loaded; `class_names` are those of labels 1, 2, ...

    Attributes:
        category_ids: Ids of the classes in the annotations that it was trained with, in the order of the labels.
    """

    task: str = "detection"
    category_ids: list[int] = field(default_factory=list)

    @property
    def mode(self) -> str:
        """Pillow's mode of the images that it takes, `"RGB"` or `"L"`."""
        return "L" if self.data_config["input_size"][0] == 1 else "RGB"


def save_detector(model: Any, directory: str | os.PathLike, *, class_names: list[str], category_ids: list[int]) -> Path:
    """Write `config.json` and `model.safetensors`, which `patnet.load` reads; each file is replaced in one step.

    The names are those of labels 1, 2, ..., the ids those of the annotations. The directory is made if it is missing.

    Raises:
        InputError: If the files cannot be written.
    """
    directory = Path(directory)
    described = {"task": "detection", "build": model.build_args}
    described |= {"class_names": class_names, "category_ids": category_ids}
    # Weights may be channels-last in memory, which safetensors refuses.
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_write(directory / "model.safetensors") as weights_file, atomic_write(directory / "config.json") as file:
        weights_file.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
        file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return directory


def read_description(path: str | os.PathLike, checkpoint: str = "best") -> dict[str, Any]:
    """What the `config.json` of a detector holds: `build` (the arguments), `class_names` and `category_ids`.

    Raises:
        InputError: If there is no such checkpoint, or it is not a detector's.
    """
    described = read_config(find_weights(path, checkpoint)[0])
    for key, wanted in (("build", dict), ("class_names", list), ("category_ids", list)):
        if not isinstance(described.get(key), wanted):
            raise InputError(
                f"{path}: holds no detector; give a run directory of patnet detect train, or its best/ or last/"
            )
    return described


def load_detector(
    path: str | os.PathLike, checkpoint: str = "best", *, score_thresh: float | None = None
) -> DetectorLoaded:
    """Load a trained detector, in evaluation mode.

    Args:
        path: A run directory of `patnet detect train`, a directory that `save_detector` wrote, or `hf-hub:OWNER/NAME`.
        checkpoint: `"best"` or `"last"`, of a run directory.
        score_thresh: Detections with a score of no more are left out, before their masks take memory; None for what
            the detector was trained with, 0.05 by default.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """
    described = read_description(path, checkpoint)
    file, run = find_weights(path, checkpoint)
    weights = read_tensors(file)
    args = dict(described["build"])
    if score_thresh is not None:
        args["score_thresh" if args.get("detector") == "retinanet" else "box_score_thresh"] = score_thresh
    try:
        model: Any = build(**args)
        model.load_state_dict(weights)
        classes = int(args["num_classes"])
    except (InputError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: its weights do not fit the detector that it describes ({reason})") from error
    names = [str(name) for name in described["class_names"]]
    if not len(names) == len(described["category_ids"]) == classes:
        raise InputError(f"{path}: names {len(names)} classes, but the detector has {classes}")
    resize, ids = model.transform, [int(number) for number in described["category_ids"]]
    mean, std = tuple(resize.image_mean), tuple(resize.image_std)
    data_config = {"input_size": (len(mean), resize.min_size[-1], resize.max_size), "mean": mean, "std": std}
    return DetectorLoaded(model.eval(), names, data_config, file=file, run=run, category_ids=ids)


def load_matching(model: Any, path: str | os.PathLike) -> None:
    """Load those weights of a trained detector that fit a new one, which may have other classes or input channels.

    A warning names what does not fit.

    Raises:
        InputError: If the trained detector is of another architecture.
    """
    trained = read_description(path)["build"]
    for key in ("detector", "backbone", "width"):
        if trained.get(key) != model.build_args[key]:
            raise InputError(
                f"{path}: its {key} is {trained.get(key)}, not {model.build_args[key]}; give --{key} "
                f"{trained.get(key)}, or another checkpoint"
            )
    own = model.state_dict()
    weights = dict(read_tensors(find_weights(path)[0]))
    for message in adapt_stem(weights, own, model.backbone.body.model, "backbone.body.model."):
        logger.warning("%s: %s", path, message)
    matching = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(matching, strict=False)
    if new := sorted({key.rpartition(".")[0] for key in own.keys() - matching.keys()}):
        logger.warning("%s: newly initialised, because the checkpoint has none that fit: %s", path, ", ".join(new))
