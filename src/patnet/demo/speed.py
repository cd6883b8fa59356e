"""Two models' speed on this machine, measured while one waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from matplotlib.figure import Figure

from ..benchmark import Options, measure
from ..benchmark.candidates import count, missing, network_of
from ..benchmark.published import FAMILY, peers
from ..benchmark.report import Comparison, say_machine
from ..deploy.runtimes import RUNTIMES
from ..errors import InputError, nearest

__all__ = ["Speed", "compare_speed", "runtimes_here"]

SECONDS = 3.0  # that the rounds of a comparison take
MINUTES = 1.0  # after which no further network is prepared
MOST_GMACS, MOST_PARAMETERS = 40.0, 200e6  # of a model and batch, so that it is done while one waits
COLORS = ("#2a6f97", "#d1495b")

# The models to choose from; any other name that timm knows can be typed.
SUGGESTED = tuple(dict.fromkeys([*FAMILY, *peers(), "resnet18", "resnet50", "vit_small_patch16_224"]))


def runtimes_here() -> list[str]:
    """The runtimes that are installed; compiling would take longer than one waits."""
    return [name for name in RUNTIMES if name != "compile" and not missing(name)]


class Speed:
    """Two models' times, and what they come to.

    Attributes:
        comparison: The first's time over the second's.
        machine: On which, in words.
    """

    def __init__(self, comparison: Comparison, machine: str) -> None:
        self.comparison, self.machine = comparison, machine

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Name, median and 95th percentile in ms, images/s, parameters and GMACs of both."""
        keys = ("model", "median_ms", "p95_ms", "images_per_s", "parameters", "gmacs")
        both = (self.comparison.first.row(), self.comparison.second.row())
        return [{key: row[key] for key in keys} for row in both]

    @property
    def sentence(self) -> str:
        """The ratio with its spread."""
        first, second = (Path(row["model"]).name for row in self.rows)
        s, setting = self.comparison.spread, self.comparison.first.candidate.setting
        return (
            f"{first} takes {s.ratio:.2f} times as long as {second}, round by round {s.paired:.2f} ({s.low:.2f} to "
            f"{s.high:.2f} in the middle half of {s.rounds} rounds). {setting}, both fused, "
            f"{self.comparison.first.candidate.runtime}."
        )

    def draw(self) -> Figure:
        """The time of each round as a dot, the median as a line."""
        figure = Figure(figsize=(5.2, 2.1), layout="constrained")
        axes = figure.subplots()
        sides = (self.comparison.first, self.comparison.second)
        top = 0.0
        for place, (side, color) in enumerate(zip(sides, COLORS, strict=True)):
            times = [1e3 * seconds for seconds in side.turns[-1].medians]
            median = side.row()["median_ms"]
            top = max(top, 1.25 * median)
            steps = [place - 0.22 + 0.44 * i / max(len(times) - 1, 1) for i in range(len(times))]
            axes.plot(times, steps, "o", color=color, ms=4, alpha=0.45, mec="none")
            axes.plot([median, median], [place - 0.34, place + 0.34], color=color, lw=2.5)
            axes.annotate(
                f"{median:.3g} ms", (median, place - 0.36), ha="center", va="bottom", fontsize=10, color=color
            )
        axes.set_yticks((0, 1), [Path(side.candidate.model).name for side in sides], fontsize=10)
        axes.set(xlim=(0, top), ylim=(1.5, -0.75), xlabel="ms for a batch (dots: rounds, line: median)")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def compare_speed(
    first: str,
    second: str,
    *,
    batch: int = 1,
    size: int = 224,
    runtime: str = "eager",
    own: str | None = None,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> Speed:
    """Measure two models in turns, both fused, on one thread.

    Args:
        first: A name that timm knows, or `own`.
        second: Likewise.
        batch: Pictures in a batch.
        size: Their side in px.
        runtime: Of `runtimes_here()`.
        own: The one run or checkpoint that is measured too; no other path is opened.
        seconds: That the rounds take.
        say: Told what is being done.

    Raises:
        InputError: If a model is unknown, does not take such pictures, or would take too long, or if both are the same.
    """
    if runtime not in runtimes_here():
        raise InputError(f"there is no runtime {runtime!r} here; there are {', '.join(runtimes_here())}")
    if not first or not second:
        raise InputError("choose two models")
    if first == second:
        raise InputError("choose two different models")
    for name, value in (("batch", batch), ("size", size)):
        if value < 1:
            raise InputError(f"the {name} must be at least 1")
    for model in (first, second):
        _check(model, batch, size, own)
    options = Options(
        models=(first, second),
        forms=("fused",),
        runtimes=(runtime,),
        batch=(batch,),
        chunks=(batch,),
        size=(size,),
        seconds=seconds,
        minutes=MINUTES,
    )
    result = measure(options, say)
    if not result.comparisons:
        raise InputError("they could not be compared, " + ("; ".join(result.left_out) or result.incomplete))
    return Speed(result.comparisons[0], say_machine(result.as_dict()["machine"]))


def _check(model: str, batch: int, size: int, own: str | None) -> None:
    """Refuse, with an `InputError`, what is no model or would not be done while one waits."""
    if model != own and not timm.is_model(model):
        raise InputError(f"timm knows no model {model!r}{nearest(model, timm.list_models())}")
    try:
        parameters, gmacs = count(network_of(model, "meta"), size)
    except InputError as error:
        raise InputError(str(error).replace(f"--size {size}: the network", Path(model).name)) from error
    for found, most, unit in (
        (parameters / 1e6, MOST_PARAMETERS / 1e6, "million parameters"),
        (gmacs * batch, MOST_GMACS, "GMACs"),
    ):
        if found > most:
            raise InputError(
                f"{Path(model).name} with {batch} pictures of {size} px comes to {found:.0f} {unit}, above the "
                f"{most:.0f} that are measured here; patnet bench measures all"
            )
