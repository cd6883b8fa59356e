"""The experiments: each is a claim, and configurations of the one network that differ in one thing.

A new experiment is one entry in `EXPERIMENTS`. What is measured of its trained networks beyond their accuracy is one
more module, such as `redundancy.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from types import ModuleType
from typing import Any, Literal, NamedTuple

import gaussianity
import position
import redundancy

from patnet import InputError
from patnet.errors import nearest


class Comparison(NamedTuple):
    """Two configurations whose accuracies the paper compares; that of the first is higher, lower or equal there."""

    configuration: str
    baseline: str
    expected: Literal["higher", "lower", "equal"]


@dataclass(frozen=True)
class Experiment:
    """An entry of `EXPERIMENTS`.

    Attributes:
        claim: What the paper (arXiv 2503.03148) states or leaves open, in one sentence.
        baseline: Name of the configuration that all others are compared with.
        configurations: By name, the arguments of the model in which they differ.
        comparisons: Those of the paper; every configuration is compared with the baseline in addition.
        sizes: Image sizes in px at which the cost is measured, in addition to that of training.
        options: Defaults of this experiment's options, over those of `ExperimentConfig`.
        matched: Whether each configuration gets the width (`embed_dim`) at which it is as fast as the baseline.
        analysis: Module whose `measure` analyses the networks of the first seed, and gives JSON; its `finding`,
            `to_markdown` and `draw` report that as a sentence, a table and figures.
    """

    claim: str
    baseline: str
    configurations: Mapping[str, Mapping[str, Any]]
    comparisons: tuple[Comparison, ...] = ()
    sizes: tuple[int, ...] = (224,)
    options: Mapping[str, Any] = field(default_factory=dict)
    matched: bool = False
    analysis: ModuleType | None = None


def find(name: str) -> Experiment:
    """The entry of this name, or an `InputError`."""
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name!r}{nearest(name, EXPERIMENTS)}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _mixers(first: str, last: str) -> list[str]:
    """Mixers of the four stages: `first` in stages 1 to 3, `last` in stage 4."""
    return [first, first, first, last]


def _components() -> dict[str, dict[str, Any]]:
    steps: dict[str, dict[str, Any]] = {
        "pconv": {"mixers": _mixers("pconv", "pconv"), "spatial_attn": "none"},
        "ch": {"mixers": _mixers("pat_ch", "pat_ch"), "spatial_attn": "none"},
        "ch-sp": {"mixers": _mixers("pat_ch", "pat_ch"), "spatial_attn": "pat_sp"},
        "ch-sp-sf": {"mixers": _mixers("pat_ch", "pat_sf"), "spatial_attn": "pat_sp"},
    }
    return {
        f"{name}-{''.join(map(str, depths))}": {**model_kwargs, "depths": depths}
        for depths in ([2, 2, 8, 2], [2, 2, 6, 4])
        for name, model_kwargs in steps.items()
    }


def _allocations() -> dict[str, dict[str, Any]]:
    """Self-attention in each of the sixteen choices of stages, the fewest stages first."""
    found = {}
    for chosen in sorted(product((True, False), repeat=4), key=sum):
        stages = "".join(str(i) for i, attends in enumerate(chosen, start=1) if attends)
        found[f"sf-{stages or 'none'}"] = {"mixers": ["pat_sf" if attends else "pat_ch" for attends in chosen]}
    return found


EXPERIMENTS: dict[str, Experiment] = {
    "partial-vs-full": Experiment(
        claim="Attention on a part of the channels can replace attention on all of them, with fewer parameters and "
        "FLOPs (Table 3).",
        baseline="partial",
        configurations={
            "partial": {},
            "full-ch": {"mixers": _mixers("full_ch", "pat_sf")},
            "full-sp": {"spatial_attn": "full_sp"},
            "full-sf": {"mixers": _mixers("pat_ch", "full_sf")},
            "full": {"mixers": _mixers("full_ch", "full_sf"), "spatial_attn": "full_sp"},
        }
        | {
            f"{part}-{name}": {"mixers": _mixers("pat_ch", f"{mixer}_{name}")}
            for name in ("linear", "lka", "window")
            for part, mixer in (("partial", "pat"), ("full", "full"))
        },
        comparisons=(
            *(Comparison(f"full{part}", "partial", "equal") for part in ("", "-ch", "-sp", "-sf")),
            *(Comparison(f"full-{name}", f"partial-{name}", "equal") for name in ("linear", "lka", "window")),
        ),
    ),
    "components": Experiment(
        claim="PAT_ch, PAT_sp and PAT_sf each increase the accuracy of FasterNet's block, and depths 2-2-6-4 are "
        "better than 2-2-8-2 with PAT_sf in the last stage (Table 4).",
        baseline="pconv-2282",
        configurations=_components(),
        comparisons=(
            Comparison("ch-2282", "pconv-2282", "higher"),
            Comparison("ch-sp-2282", "ch-2282", "higher"),
            Comparison("ch-sp-sf-2282", "ch-sp-2282", "higher"),
            Comparison("ch-sp-sf-2264", "ch-sp-2264", "higher"),
            Comparison("ch-sp-sf-2264", "ch-sp-sf-2282", "higher"),
        ),
    ),
    "mixers": Experiment(
        claim="At equal speed PAT_ch is more accurate than a convolution, a depthwise convolution and a partial "
        "convolution (Table 5).",
        baseline="pat_ch",
        configurations={
            mixer: {"mixers": _mixers(mixer, "pat_sf")} for mixer in ("pat_ch", "conv", "dwconv", "dwconv7", "pconv")
        },
        comparisons=tuple(Comparison(mixer, "pat_ch", "lower") for mixer in ("conv", "dwconv", "pconv")),
        matched=True,
    ),
    "attentions": Experiment(
        claim="The Gaussian channel attention is more accurate than those of SE and SRM (Table 10).",
        baseline="gaussian",
        configurations={name: {"channel_attn": name} for name in ("gaussian", "se", "srm", "eca", "gct", "none")},
        comparisons=tuple(Comparison(name, "gaussian", "lower") for name in ("se", "srm")),
    ),
    "allocation": Experiment(
        claim="Self-attention belongs in the last stage only, because it is too slow on larger maps (left open by the "
        "paper, whose Table 4 has it there).",
        baseline="sf-4",
        configurations=_allocations(),
        sizes=(128, 224),
    ),
    "last-stage": Experiment(
        claim="Other attentions fit the partial frame of the last stage: linear, large-kernel and window attention "
        "(left open by the paper).",
        baseline="pat_sf",
        configurations={
            mixer: {"mixers": _mixers("pat_ch", mixer)}
            for mixer in ("pat_sf", "pat_linear", "pat_lka", "pat_window", "pat_ch")
        },
    ),
    "ratio": Experiment(
        claim="It is enough to convolve a quarter of the channels (the paper takes 1/4 throughout).",
        baseline="1-4",
        configurations={
            name: {"partial_ratio": ratio}
            for name, ratio in (("1-8", 0.125), ("1-4", 0.25), ("1-2", 0.5), ("3-4", 0.75))
        },
    ),
    "norms": Experiment(
        claim="The norms of PAT_ch and PAT_sf may be where the authors' code has them or where the paper draws them "
        "(the two disagree).",
        baseline="code",
        configurations={
            "code": {},
            "ch-all": {"ch_norm_position": "all"},
            "sf-after": {"sf_norm_position": "after"},
            "paper": {"ch_norm_position": "all", "sf_norm_position": "after"},
        },
    ),
    "position": Experiment(
        claim="PAT_sf needs a relative position term, whose form the paper leaves open.",
        baseline="euclidean-bias",
        configurations={
            f"{method}-{mode}": {"position_method": method, "position_mode": mode}
            for method in ("euclidean", "product")
            for mode in ("bias", "contextual")
        }
        | {"none": {"position_method": "none"}},
        # Maps of 3x3 positions, and a learning rate at which the position tables leave their initial zeros.
        options={"img_size": 96, "epochs": 12, "lr": 1e-3},
        analysis=position,
    ),
    "gaussianity": Experiment(
        claim="Features are close enough to normal to be described by mean and std (assumed by the paper's Gaussian "
        "attention, and not checked).",
        baseline="gaussian",
        configurations={name: {"channel_attn": name} for name in ("gaussian", "mean", "quantile")},
        analysis=gaussianity,
    ),
    "redundancy": Experiment(
        claim="The channels of a map are so similar that it is enough to convolve a part of them (assumed by the "
        "paper, and by FasterNet before it).",
        baseline="patnet",
        configurations={"patnet": {}},
        options={"seeds": 1},
        analysis=redundancy,
    ),
}
