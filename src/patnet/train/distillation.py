"""Learning from a teacher's answers as well as from the labels."""

from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import Tensor

from ..errors import InputError, nearest
from ..models.checkpoint import from_checkpoint

__all__ = ["distillation_loss", "load_teacher"]


def load_teacher(name: str, num_classes: int, in_chans: int) -> DistillationTeacher:
    """The teacher, in evaluation mode.

    Args:
        name: Of a checkpoint or run, or of a model of timm's whose weights timm has or fetches.
        num_classes: Of the student.
        in_chans: Of the student.

    Raises:
        InputError: If there is no such teacher, or it knows other classes or channels.
    """
    model: Any
    if Path(name).exists():
        model = from_checkpoint(name)
    elif timm.is_model(name.split(".")[0]):
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # the Hub's client and the network have many types
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--teacher {name}: timm has no weights for it here ({reason}); give a checkpoint"
            ) from error
    else:
        raise InputError(
            f"--teacher {name}: neither a checkpoint nor a model of timm's{nearest(name, timm.list_models())}"
        )
    if model.num_classes != num_classes:
        raise InputError(f"--teacher {name}: knows {model.num_classes} classes, and the data set has {num_classes}")
    channels = model.pretrained_cfg["input_size"][0]
    stem = model.get_submodule(model.pretrained_cfg["first_conv"])
    channels = getattr(stem, "in_channels", channels)
    if channels != in_chans:
        raise InputError(f"--teacher {name}: takes {channels} channels, and --in_chans is {in_chans}")
    teacher = DistillationTeacher(model)
    return teacher.requires_grad_(False).eval()


def distillation_loss(logits: Tensor, teacher: Tensor, kind: str, tau: float) -> Tensor:
    """How far the student is from the teacher.

    Args:
        logits: Of the student, `(N, classes)`.
        teacher: Likewise.
        kind: `"hard"` for cross-entropy with the teacher's answer, `"soft"` for the divergence from its probabilities
            (DeiT, arXiv 2012.12877, equations 2 and 3).
        tau: Temperature of the soft form.
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(dim=1))
    divergence = F.kl_div(
        F.log_softmax(logits / tau, dim=1), F.log_softmax(teacher / tau, dim=1), reduction="batchmean", log_target=True
    )
    return divergence * tau**2
