"""The experiments: each a claim, and the arguments of the one network by which its configurations differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, nearest
from .analyses import Analysis, analyse_gaussianity, analyse_position, analyse_redundancy

__all__ = ["EXPERIMENTS", "Analyse", "Comparison", "Configuration", "Experiment", "experiment"]

# Called once all runs are there, with the folder of the experiment and the run folders of each configuration, in the
# order of the seeds. It may write files into the folder; the lines that it gives are Markdown for the report.
Analyse = Callable[[Path, Mapping[str, Sequence[Path]]], Analysis]


class Configuration(NamedTuple):
    """A network of an experiment.

    Attributes:
        name: Also that of its folder.
        model_args: Arguments of the network, over those of the whole experiment.
        model: Name of the network; None for that of the whole experiment.
    """

    name: str
    model_args: Mapping[str, Any]
    model: str | None = None


class Comparison(NamedTuple):
    """Two configurations whose accuracies the paper compares.

    Attributes:
        configuration: Name of the one.
        against: Name of the other.
        paper: How accurate the first is in the paper beside the second: `"more"`, `"less"` or `"as"` accurate.
    """

    configuration: str
    against: str
    paper: str


@dataclass(frozen=True)
class Experiment:
    """An entry of `EXPERIMENTS`.

    Attributes:
        claim: What the paper (arXiv 2503.03148) says, or leaves open, in a sentence.
        baseline: Name of the configuration that the others are compared with.
        configurations: In the order of the report.
        sizes: Sides of the pictures in px at which the cost is measured, beside that of training.
        comparisons: Those of the paper. Every configuration is compared with the baseline besides.
        matched: Whether the others get the width (`embed_dim`) with which they are as fast as the baseline.
        analyse: What is done with the trained networks beyond the comparison.
    """

    claim: str
    baseline: str
    configurations: tuple[Configuration, ...]
    sizes: tuple[int, ...] = field(default=(224,))
    comparisons: tuple[Comparison, ...] = ()
    matched: bool = False
    analyse: Analyse | None = None


def experiment(name: str) -> Experiment:
    """The entry of `EXPERIMENTS`.

    Raises:
        InputError: If there is none of this name.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name!r}{nearest(name, EXPERIMENTS)}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _stages(first: str, last: str) -> list[str]:
    """Mixers of the stages: `first` in 1 to 3, `last` in 4."""
    return [first, first, first, last]


def _partial_and_full(*attentions: str) -> Iterator[Configuration]:
    """Other attentions in stage 4, in both forms."""
    for name in attentions:
        yield Configuration(f"partial-{name}", {"mixers": _stages("pat_ch", f"pat_{name}")})
        yield Configuration(f"full-{name}", {"mixers": _stages("pat_ch", f"full_{name}")})


def _components() -> tuple[Configuration, ...]:
    steps: dict[str, dict[str, Any]] = {
        "pconv": {"mixers": _stages("pconv", "pconv"), "spatial_attn": "none"},
        "ch": {"mixers": _stages("pat_ch", "pat_ch"), "spatial_attn": "none"},
        "ch-sp": {"mixers": _stages("pat_ch", "pat_ch"), "spatial_attn": "pat_sp"},
        "ch-sp-sf": {"mixers": _stages("pat_ch", "pat_sf"), "spatial_attn": "pat_sp"},
    }
    return tuple(
        Configuration(f"{name}-{''.join(map(str, depths))}", {**args, "depths": depths})
        for depths in ([2, 2, 8, 2], [2, 2, 6, 4])
        for name, args in steps.items()
    )


def _allocations() -> tuple[Configuration, ...]:
    found = []
    for chosen in product((False, True), repeat=4):
        stages = "".join(str(i + 1) for i, attends in enumerate(chosen) if attends)
        mixers = ["pat_sf" if attends else "pat_ch" for attends in chosen]
        found.append(Configuration(f"sf-{stages or 'none'}", {"mixers": mixers}))
    return tuple(sorted(found, key=lambda c: (len(c.name) if c.name != "sf-none" else 0, c.name)))


EXPERIMENTS: dict[str, Experiment] = {
    "partial-vs-full": Experiment(
        claim="Attention on a part of the channels can stand in for attention on all of them, with fewer parameters "
        "and FLOPs (Table 3).",
        baseline="partial",
        configurations=(
            Configuration("partial", {}),
            Configuration("full-ch", {"mixers": _stages("full_ch", "pat_sf")}),
            Configuration("full-sp", {"spatial_attn": "full_sp"}),
            Configuration("full-sf", {"mixers": _stages("pat_ch", "full_sf")}),
            Configuration("full", {"mixers": _stages("full_ch", "full_sf"), "spatial_attn": "full_sp"}),
            *_partial_and_full("linear", "lka", "window"),
        ),
        comparisons=(
            *(Comparison(f"full{part}", "partial", "as") for part in ("", "-ch", "-sp", "-sf")),
            *(Comparison(f"full-{name}", f"partial-{name}", "as") for name in ("linear", "lka", "window")),
        ),
    ),
    "components": Experiment(
        claim="PAT_ch, PAT_sp and PAT_sf each add accuracy to FasterNet's block, and depths 2-2-6-4 are better than "
        "2-2-8-2 with PAT_sf in the last stage (Table 4).",
        baseline="pconv-2282",
        configurations=_components(),
        comparisons=(
            Comparison("ch-2282", "pconv-2282", "more"),
            Comparison("ch-sp-2282", "ch-2282", "more"),
            Comparison("ch-sp-sf-2282", "ch-sp-2282", "more"),
            Comparison("ch-sp-sf-2264", "ch-sp-2264", "more"),
            Comparison("ch-sp-sf-2264", "ch-sp-sf-2282", "more"),
        ),
    ),
    "mixers": Experiment(
        claim="At the same speed PAT_ch is more accurate than a convolution, a depthwise one or a partial one "
        "(Table 5).",
        baseline="pat_ch",
        configurations=tuple(
            Configuration(mixer, {"mixers": _stages(mixer, "pat_sf")})
            for mixer in ("pat_ch", "conv", "dwconv", "dwconv7", "pconv")
        ),
        comparisons=tuple(Comparison(mixer, "pat_ch", "less") for mixer in ("conv", "dwconv", "pconv")),
        matched=True,
    ),
    "attentions": Experiment(
        claim="The Gaussian channel attention is more accurate than those of SE and SRM (Table 10).",
        baseline="gaussian",
        configurations=tuple(
            Configuration(name, {"channel_attn": name}) for name in ("gaussian", "se", "srm", "eca", "gct", "none")
        ),
        comparisons=tuple(Comparison(name, "gaussian", "less") for name in ("se", "srm")),
    ),
    "allocation": Experiment(
        claim="Self-attention belongs in the last stage alone, for it is too slow on larger maps (left open by the "
        "paper, whose Table 4 has it there).",
        baseline="sf-4",
        configurations=_allocations(),
        sizes=(128, 224),
    ),
    "last-stage": Experiment(
        claim="Other attentions fit the partial frame of the last stage too: linear, large-kernel and window attention "
        "(left open by the paper).",
        baseline="pat_sf",
        configurations=tuple(
            Configuration(mixer, {"mixers": _stages("pat_ch", mixer)})
            for mixer in ("pat_sf", "pat_linear", "pat_lka", "pat_window", "pat_ch")
        ),
    ),
    "ratio": Experiment(
        claim="A quarter of the channels is enough to convolve (the paper takes 1/4 throughout).",
        baseline="1-4",
        configurations=tuple(
            Configuration(name, {"partial_ratio": share})
            for name, share in (("1-8", 0.125), ("1-4", 0.25), ("1-2", 0.5), ("3-4", 0.75))
        ),
    ),
    "norms": Experiment(
        claim="The norms of PAT_ch and PAT_sf may stand where the authors' code has them, or where the paper draws "
        "them (the two disagree).",
        baseline="code",
        configurations=(
            Configuration("code", {}),
            Configuration("ch-all", {"ch_norm_position": "all"}),
            Configuration("sf-after", {"sf_norm_position": "after"}),
            Configuration("paper", {"ch_norm_position": "all", "sf_norm_position": "after"}),
        ),
    ),
    "position": Experiment(
        claim="PAT_sf needs a relative position term, of a form that the paper leaves open.",
        baseline="euclidean-bias",
        configurations=(
            *(
                Configuration(f"{method}-{mode}", {"position_method": method, "position_mode": mode})
                for method in ("euclidean", "product")
                for mode in ("bias", "contextual")
            ),
            Configuration("none", {"position_method": "none"}),
        ),
        analyse=analyse_position,
    ),
    "gaussianity": Experiment(
        claim="Features are near enough to normal for mean and standard deviation to describe them (assumed by the "
        "paper's Gaussian attention, and left unchecked).",
        baseline="gaussian",
        configurations=tuple(Configuration(name, {"channel_attn": name}) for name in ("gaussian", "mean", "quantile")),
        analyse=analyse_gaussianity,
    ),
    "redundancy": Experiment(
        claim="The channels of a map are much alike, so that a part of them is enough to convolve (assumed by the "
        "paper, and by FasterNet before it).",
        baseline="patnet",
        configurations=(Configuration("patnet", {}),),
        analyse=analyse_redundancy,
    ),
}
