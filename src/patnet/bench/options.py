"""What to measure: options with their defaults, and the candidates that they stand for."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from typing import Literal

import torch

from ..deploy import BACKENDS, find_backend
from ..deploy.pytorch import Eager
from ..errors import InputError, nearest
from ..train.config import PositiveFloat, PositiveInt
from .networks import usual_size

__all__ = ["FAMILY", "MEMORY_FORMATS", "Candidate", "Options", "group_by_size"]

FAMILY = [f"{family}_{size}" for size in ("t0", "t1", "t2", "s", "m", "l") for family in ("patnet", "fasternet")]
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Candidate:
    """A network in one of the ways to run it.

    Attributes:
        model: Model of timm, run directory or checkpoint.
        backend: Name in `BACKENDS`.
        form: `"fused"` or `"unfused"`.
        precision: One of the backend's precisions.
        memory_format: `"contiguous"` or `"channels_last"`.
        img_size: Side of the images in px.
        batch_size: Images per call.
        threads: CPU threads.
    """

    model: str
    backend: str
    form: str
    precision: str
    memory_format: str
    img_size: int
    batch_size: int
    threads: int

    @property
    def way(self) -> tuple[str, ...]:
        """What can be chosen to make a model faster."""
        return self.backend, self.form, self.memory_format

    def __str__(self) -> str:
        return (
            f"{self.model}, {', '.join(self.way)}, {self.precision}, {self.img_size} px, batch size {self.batch_size}"
        )


@dataclass(kw_only=True)
class Options:
    """What to measure.

    Args:
        models: Models of timm, run directories and checkpoints; default: the six PATNets and FasterNets. A PATNet is
            compared with the FasterNet of its size, other models with the last one.
        backends: eager, onnx, openvino, torch, compile, aotinductor; default: eager, onnx and openvino, on a GPU eager
            and compile, where installed.
        forms: fused, unfused; default: fused, in eager unfused too.
        precision: Precisions of the backends; default: fp32, on a GPU fp16.
        batch_size: Images per call; default: 1, on a GPU 1 and 128.
        img_size: Sides of the images in px; default: each model's usual one.
        memory_format: contiguous, channels_last (eager and compile only).
        threads: CPU threads.
        device: Device to measure on.
        seconds: Duration of the rounds in which a group of models is measured.
        minutes: Time limit; what there is no time for is listed.
    """

    models: list[str] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)
    forms: list[Literal["fused", "unfused"]] = field(default_factory=list)
    precision: list[str] = field(default_factory=list)
    batch_size: list[PositiveInt] = field(default_factory=list)
    img_size: list[PositiveInt] = field(default_factory=list)
    memory_format: list[Literal["contiguous", "channels_last"]] = field(default_factory=lambda: ["contiguous"])
    threads: list[PositiveInt] = field(default_factory=lambda: [1])
    device: Literal["cpu", "cuda"] = "cpu"
    seconds: PositiveFloat = 8.0
    minutes: PositiveFloat | None = None

    def resolved(self) -> "Options":
        """The options with the defaults filled in.

        Raises:
            InputError: If something cannot be measured.
        """
        gpu = self.device == "cuda"
        if gpu and not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no GPU; leave it out to measure on the CPU")
        usual = [backend for backend in BACKENDS.values() if self.device in backend.bench_on]
        found = replace(
            self,
            models=self.models or FAMILY,
            backends=self.backends or [b.name for b in usual if all(map(find_spec, b.packages))],
            precision=self.precision or ["fp16" if gpu else "fp32"],
            batch_size=self.batch_size or ([1, 128] if gpu else [1]),
        )
        for model in found.models:
            usual_size(model)
        for name in found.backends:
            backend = find_backend(name)
            backend.check(backend.precisions[0])
            if self.device not in backend.devices:
                raise InputError(f"--backends {name}: runs on {' or '.join(backend.devices)}, not on {self.device}")
        known = list(dict.fromkeys(p for name in found.backends for p in BACKENDS[name].precisions))
        for precision in set(found.precision) - set(known):
            hint = f"{nearest(precision, known)}; choose from {', '.join(known)}"
            raise InputError(f"--precision {precision}: not available in {', '.join(found.backends)}{hint}")
        cores = os.cpu_count() or 1
        if max(self.threads) > cores:
            raise InputError(f"--threads {max(self.threads)}: this machine has {cores} cores")
        return found

    def ways(self) -> Iterator[tuple[str, str, str, str]]:
        """Backend, form, precision and memory format of the candidates, the quickly prepared ones first."""
        for name in sorted(self.backends, key=list(BACKENDS).index):
            backend = BACKENDS[name]
            forms = self.forms or (["fused", "unfused"] if type(backend) is Eager else ["fused"])
            formats = self.memory_format if isinstance(backend, Eager) else ["contiguous"]
            precisions = [precision for precision in self.precision if precision in backend.precisions]
            yield from product([name], forms, precisions, formats)


def group_by_size(models: Sequence[str]) -> list[list[str]]:
    """The models in groups to compare: each PATNet with the FasterNet of its size, and the others."""
    twins = {model: model.replace("patnet_", "fasternet_") for model in models if model.startswith("patnet_")}
    found = [[model, twin] for model, twin in twins.items() if twin in models]
    paired = {model for pair in found for model in pair}
    others = [model for model in models if model not in paired]
    return [*found, others] if others else found
