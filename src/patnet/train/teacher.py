"""Distillation: learning from a teacher's predictions as well as from the labels."""

from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import Tensor

from ..errors import InputError, nearest
from ..models import load_checkpoint

__all__ = ["distillation_loss", "load_teacher"]


def load_teacher(name: str, num_classes: int, in_chans: int) -> DistillationTeacher:
    """The teacher, in evaluation mode.

    Args:
        name: A checkpoint or run directory, or a model of timm's with pretrained weights.
        num_classes: Classes of the student.
        in_chans: Input channels of the student.

    Raises:
        InputError: If there is no such teacher, or it has other classes or channels.
    """
    model: Any
    if Path(name).exists():
        model = load_checkpoint(name).model
    elif timm.is_model(name.split(".")[0]):
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # the Hub's client and the network raise many types
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--teacher {name}: timm has no weights of it here ({reason})") from error
    else:
        hint = nearest(name, timm.list_models())
        raise InputError(f"--teacher {name}: neither a checkpoint nor a model of timm's{hint}")
    if model.num_classes != num_classes:
        raise InputError(f"--teacher {name}: has {model.num_classes} classes, but the data set has {num_classes}")
    stem = model.get_submodule(model.pretrained_cfg["first_conv"])
    channels = getattr(stem, "in_channels", model.pretrained_cfg["input_size"][0])
    if channels != in_chans:
        raise InputError(f"--teacher {name}: takes {channels} channels, but --in-chans is {in_chans}")
    return DistillationTeacher(model).requires_grad_(False).eval()


def distillation_loss(logits: Tensor, teacher: Tensor, kind: str, tau: float) -> Tensor:
    """The distillation loss of DeiT (arXiv 2012.12877, equations 2 and 3).

    Args:
        logits: Logits of the student, `(N, classes)`.
        teacher: Logits of the teacher, `(N, classes)`.
        kind: `"hard"`: cross-entropy with the teacher's class; `"soft"`: divergence from its probabilities.
        tau: Temperature of the soft form.
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(dim=1))
    student, target = F.log_softmax(logits / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * tau**2
