"""Distillation: a trained network as the teacher of another, by its logits and by its last feature maps."""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..models import PACKAGED, Loaded, hub_name, input_channels, load_checkpoint, stages_of

__all__ = ["Teacher", "distillation_loss", "feature_loss", "last_maps", "open_teacher"]


def open_teacher(name: str) -> Loaded:
    """The network of `--teacher`: a run, a checkpoint, an entry of `PACKAGED`, or a pretrained model of timm's.

    Raises:
        InputError: If it cannot be loaded, or is no classifier.
    """
    if not Path(name).exists() and name not in PACKAGED and not name.startswith("hf-hub:"):
        if not timm.is_model(name):
            hint = nearest(name, [*PACKAGED, *timm.list_models()])
            raise InputError(f"--teacher {name}: neither a checkpoint nor a model of timm's{hint}")
        name = hub_name(name)
    try:
        return load_checkpoint(name)
    except InputError as error:
        raise InputError(f"--teacher {error}") from error


def last_maps(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the maps `(N, C, h, w)` of the last stage."""
    final, maps = model.forward_intermediates(images, indices=1)
    return model.forward_head(final), maps[-1]


class Teacher:
    """A frozen network that a student learns from.

    Args:
        name: See `open_teacher`.
        class_names: The student's classes, which must be the teacher's; None if its logits are not used.
        data_config: Preprocessing of the student's images.

    Attributes:
        channels: Channels of its last maps.

    Raises:
        InputError: If it cannot be loaded, or has other classes or channels.
    """

    def __init__(self, name: str, class_names: list[str] | None, data_config: dict[str, Any]) -> None:
        loaded = open_teacher(name)
        self.model: Any = loaded.model.requires_grad_(False)
        self.channels = stages_of(self.model)[-1]["num_chs"] if stages_of(self.model) else 0
        channels, wanted = input_channels(self.model), data_config["input_size"][0]
        if channels != wanted:
            raise InputError(f"--teacher {name}: takes {channels} channels, but --in-chans is {wanted}")
        if class_names is not None:
            _check_classes(name, loaded.class_names, class_names)
        mean, std, own_mean, own_std = (
            torch.tensor(config[key]).view(-1, 1, 1)
            for config in (data_config, loaded.data_config)
            for key in ("mean", "std")
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std
        takes = get_model_input_config(self.model)
        self.size = takes["input_size"][1:] if takes["fixed_input_size"] else None

    @torch.no_grad()
    def __call__(self, images: Tensor, maps: bool) -> tuple[Tensor, Tensor | None]:
        """Logits and, with `maps`, the last maps, of images as the student takes them."""
        self.model.to(images.device).eval()
        images = images * self.scale.to(images) + self.shift.to(images)
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return last_maps(self.model, images) if maps else (self.model(images), None)


def _check_classes(name: str, theirs: list[str], ours: list[str]) -> None:
    numbered = theirs == [str(number) for number in range(len(theirs))]
    if len(theirs) != len(ours) or (theirs != ours and not numbered):
        found = ", ".join(theirs[:3]) + (", ..." if len(theirs) > 3 else "")
        wanted = ", ".join(ours[:3]) + (", ..." if len(ours) > 3 else "")
        raise InputError(
            f"--teacher {name}: has {len(theirs)} classes ({found}), but the data set has {len(ours)} ({wanted}); "
            "train the teacher on this data set first, or use its features alone (--distill-alpha 0)"
        )


def distillation_loss(logits: Tensor, teacher: Tensor, kind: str, tau: float) -> Tensor:
    """The loss of DeiT (arXiv 2012.12877, equations 2 and 3) between the logits of student and teacher."""
    if kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(dim=1))
    student, target = F.log_softmax(logits / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * tau**2


def feature_loss(maps: Tensor, teacher: Tensor, projection: nn.Module) -> Tensor:
    """One minus the cosine between projected maps and the teacher's, whose size is brought to theirs; the mean."""
    projected = projection(maps).float()
    target = F.interpolate(teacher.float(), projected.shape[-2:], mode="bilinear", antialias=True)
    return 1 - F.cosine_similarity(projected, target, dim=1).mean()
