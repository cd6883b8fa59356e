"""The protocol of the experiments, read from `protocol.yaml`, and the runs that it asks for in their order."""

from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import timm
import yaml
from torch import nn

from patnet import InputError
from patnet.errors import nearest

PROTOCOL = Path(__file__).with_name("protocol.yaml")
BASE = "base"  # whose latency that of the others is relative to
HIGHER, NOT_LOWER = "more accurate", "as accurate"


class Claim(NamedTuple):
    """A configuration, whether it is more or as accurate, than or as which other, and the statement."""

    configuration: str
    expected: str
    baseline: str
    text: str


class Experiment(NamedTuple):
    """Configurations that are compared with a baseline, and the claims that they test."""

    title: str
    baseline: str
    configurations: list[str]
    claims: list[Claim]


class Run(NamedTuple):
    """A run to train: of the search on a validation part of the training images, or, without a share, of the test.

    The device is part of it, because bfloat16 is not the same on both: autocast computes softmax, sums and norms in
    float32 on a GPU alone.
    """

    configuration: str
    seed: int
    lr: float
    epochs: int
    val_fraction: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True)
class Protocol:
    """The entries of `protocol.yaml`, which describes them."""

    data: str
    model: str
    model_kwargs: dict[str, Any]
    img_size: int
    batch_size: int
    weight_decay: float
    smoothing: float
    warmup: float
    precision: str
    search: dict[str, Any]
    test: dict[str, float]
    seeds: list[list[int]]
    configurations: dict[str, dict[str, Any]]
    experiments: dict[str, Experiment]

    def network(self, configuration: str, **changes: Any) -> nn.Module:
        """The network of a configuration with new weights, in evaluation mode; `changes` are arguments of the model.

        Raises:
            InputError: If the model does not take the arguments.
        """
        try:
            arguments = {**self.model_kwargs, **self.configurations[configuration], **changes}
            return timm.create_model(self.model, **arguments).eval()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"configuration {configuration}: {self.model} does not take it ({error})") from error

    def search_runs(self, device: str) -> list[Run]:
        """The runs that choose learning rate and epochs."""
        s = self.search
        rates = product(s["lr"], s["epochs"])
        return [Run(s["configuration"], s["seed"], lr, epochs, s["val_fraction"], device) for lr, epochs in rates]

    def runs(self, lr: float, epochs: int, device: str) -> list[Run]:
        """All runs in their order of importance, each once."""
        found = {
            Run(configuration, seed, lr, epochs, device=device): None
            for seeds in self.seeds
            for experiment in self.experiments.values()
            for seed in seeds
            for configuration in experiment.configurations
        }
        return list(found)


def read_protocol(path: Path = PROTOCOL) -> Protocol:
    """The protocol in a file.

    Raises:
        InputError: If it is not one, or names a configuration that it does not have.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        experiments = {
            name: Experiment(**{**entry, "claims": [Claim(*claim) for claim in entry["claims"]]})
            for name, entry in content["experiments"].items()
        }
        protocol = Protocol(**{**content, "experiments": experiments})
        searched = protocol.search_runs("cpu")[0].configuration
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        names = ", ".join(field.name for field in fields(Protocol))
        raise InputError(f"{path}: is no protocol with the entries {names} ({error})") from error
    for name in (searched, BASE):
        if name not in protocol.configurations:
            raise InputError(f"{path}: has no configuration {name!r}{nearest(name, protocol.configurations)}")
    for name, experiment in experiments.items():
        named = [experiment.baseline, *experiment.configurations, *(c for e in experiment.claims for c in e[:3:2])]
        if unknown := [c for c in named if c not in protocol.configurations]:
            raise InputError(f"{path}: {name} names {unknown[0]!r}{nearest(unknown[0], protocol.configurations)}")
        if other := {claim.expected for claim in experiment.claims} - {HIGHER, NOT_LOWER}:
            raise InputError(f"{path}: {other.pop()!r} in {name} is neither {HIGHER!r} nor {NOT_LOWER!r}")
    return protocol
