"""The options of an experiment."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch

from patnet import InputError
from patnet.train import TrainConfig
from patnet.train.config import ImageSize, PositiveFloat, PositiveInt

# Options that a later call in the same directory may change.
CHANGEABLE = ("seeds", "backend", "cost_sizes", "cost_batch", "cost_seconds", "cost_threads")


@dataclass(kw_only=True)
class ExperimentConfig(TrainConfig):
    """The options of an experiment: those of a run, by default a short form of the recipe for ELPV.

    Args:
        seeds: Runs of each configuration, with consecutive random seeds from seed on.
        tta: Views of test-time augmentation in the test.
        backend: Backend of the latency.
        cost_sizes: Image sizes in px of the costs in addition to img_size; those of the experiment by default.
        cost_batch: Images in a batch for the latency.
        cost_seconds: Approximate duration of the latency measurements in s.
        cost_threads: CPU threads for the latency.
    """

    COMMAND = "experiments/run.py"

    data: str = "elpv"
    out: str = ""
    img_size: ImageSize = 64
    in_chans: PositiveInt = 1
    epochs: PositiveInt = 10
    batch_size: PositiveInt | Literal["auto"] = 32
    lr: PositiveFloat = 1e-4
    min_lr: float = 1e-6
    warmup_epochs: float | None = 1
    smoothing: float = 0.0
    model_ema_decay: float | None = 0.99
    scale: tuple[float, float] = (1.0, 1.0)
    vflip: float = 0.5
    rot90: float = 0.5
    color_jitter: float = 0.0
    crop_pct: float = 1.0
    val_fraction: float = 0.0
    workers: int = 1
    devices: str = "1"
    seeds: PositiveInt = 3
    tta: Literal[1, 2, 4, 8] = 1
    backend: str = "eager"
    cost_sizes: list[ImageSize] = field(default_factory=list)
    cost_batch: PositiveInt = 16
    cost_seconds: PositiveFloat = 30.0
    cost_threads: PositiveInt = 1

    def check(self) -> None:
        """Raises `InputError` for the first option that cannot be used."""
        super().check()
        if self.devices != "1" or self.num_nodes > 1:
            raise InputError(
                f"--devices {self.devices}: a run of an experiment takes one device; "
                "start more processes with the same --out to use more"
            )

    def differences(self, other: Self) -> list[str]:
        """One line for each option that differs and may not be changed."""
        return super().differences(replace(other, **{name: getattr(self, name) for name in CHANGEABLE}))

    @property
    def device(self) -> str:
        """Where the latency is measured."""
        gpu = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return "cuda" if gpu else "cpu"
