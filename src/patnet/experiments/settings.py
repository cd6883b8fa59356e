"""The options of an experiment, as they stand in its `experiment.yaml`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import timm
import yaml

from ..data import DATA_SETS
from ..errors import InputError
from ..train.config import TrainConfig
from ..train.recipes import RECIPES
from ..train.views import VIEWS
from .catalogue import experiment

__all__ = ["DEFAULTS", "ExperimentConfig", "Variant", "create"]

# The recipe for ELPV, shorter, so that two cores can do an experiment.
DEFAULTS: dict[str, Any] = yaml.safe_load(RECIPES["elpv"].read_text(encoding="utf-8")) | {
    "epochs": 12,
    "warmup_epochs": 1,
    "cache_size": None,
    "devices": "1",
}


class Variant(NamedTuple):
    """The network of a configuration, as `timm.create_model` takes it."""

    model: str
    model_args: dict[str, Any]


def create(variant: Variant, **options: Any) -> Any:
    """The network, in evaluation mode.

    Raises:
        InputError: If it does not take its arguments.
    """
    try:
        return timm.create_model(variant.model, **variant.model_args, **options).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{variant.model} does not take these options ({error})") from error


@dataclass(kw_only=True)
class ExperimentConfig(TrainConfig):
    """Options of `patnet experiment`.

    Args:
        experiment: Its name.
        seeds: Runs of each configuration, with seeds counted from seed.
        views: Test over so many symmetries of a picture, 1, 2, 4 or 8.
    """

    COMMAND = "patnet experiment"

    experiment: str
    seeds: int = 3
    views: int = 1

    def check(self) -> None:
        """Check what can be checked without the data.

        Raises:
            InputError: For the first option that cannot be used.
        """
        super().check()
        experiment(self.experiment)
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds}: must be at least 1")
        if self.views not in VIEWS:
            raise InputError(f"--views {self.views}: must be one of {', '.join(map(str, VIEWS))}")
        if self.devices != "1" or self.num_nodes > 1:
            raise InputError(
                f"--devices {self.devices}: a run of an experiment takes one device; "
                "start further processes with the same --out to use more"
            )
        self.variants()

    def variants(self) -> dict[str, Variant]:
        """The network of each configuration.

        Raises:
            InputError: If one does not take its arguments.
        """
        found = {}
        for c in experiment(self.experiment).configurations:
            found[c.name] = Variant(c.model or self.model, {**self.model_args, **c.model_args})
            try:
                create(found[c.name], device="meta")
            except InputError as error:
                raise InputError(f"configuration {c.name}: {error}") from error
        return found

    @property
    def all_seeds(self) -> range:
        """The seeds of each configuration."""
        return range(self.seed, self.seed + self.seeds)

    def run_config(self, variant: Variant, seed: int, out: Path) -> TrainConfig:
        """The options of one run."""
        options = {f.name: getattr(self, f.name) for f in fields(TrainConfig)}
        if self.cache_size is None and self.data in DATA_SETS:
            options["cache_size"] = max(self.size, self.early_size or 0)
        return TrainConfig(
            **options | {"model": variant.model, "model_args": variant.model_args, "seed": seed, "out": str(out)}
        )

    def differences(self, other: Self) -> list[str]:
        """Options that another call may not share with this one, in words; there may be more seeds later."""
        return super().differences(replace(other, seeds=self.seeds))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The options, with `DEFAULTS` for what is not among them."""
        return cls(**DEFAULTS | dict(options))
