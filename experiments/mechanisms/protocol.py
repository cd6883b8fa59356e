"""The mechanism tests: networks, tasks, budgets, seeds and comparisons, read from `protocol.yaml`.

A difference counts from `MARGIN` on. Tasks, steps and learning rates were chosen on seeds from 100 on, which no result
has; what was seen of others is on the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

from .networks import Probe, Small

SEEDS = tuple(range(10))
MARGIN = 0.02  # of accuracy
BATCH_SIZE = 32
TEST_IMAGES = 512  # at each level
NETWORKS = {"Small": Small, "Probe": Probe}


class Claim(NamedTuple):
    """`first` is more accurate than `second` (`"higher"`), or as accurate (`"equal"`), on a task, over `levels`.

    `second` may be an accuracy, such as 0.5: chance.
    """

    text: str
    task: str
    levels: Sequence[float]
    first: str
    expected: str
    second: str | float


@dataclass(frozen=True)
class Test:
    """An entry of `protocol.yaml`, which describes them."""

    question: str
    difficulty: str
    tasks: Sequence[str]
    controls: Sequence[str]
    network: str
    arguments: Mapping[str, Any]
    forms: Mapping[str, Mapping[str, Any]]
    train: Sequence[float]
    test: Sequence[float]
    steps: int
    lr: float
    claims: Sequence[Claim]
    ceiling: Mapping[float, float] | None = None

    def make(self, form: str, in_chans: int, outputs: int, **more: Any) -> nn.Module:
        """A network of a form with new weights."""
        return NETWORKS[self.network](in_chans, outputs, **self.arguments, **self.forms[form], **more)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the networks that are trained for each form; one, of no meaning, if the level is not the width."""
        return (0,) if self.train else tuple(int(width) for width in self.test)


PROTOCOL = Path(__file__).with_name("protocol.yaml")
TESTS = {
    name: Test(**{**entry, "claims": [Claim(*claim) for claim in entry["claims"]]})
    for name, entry in yaml.safe_load(PROTOCOL.read_text(encoding="utf-8")).items()
}
