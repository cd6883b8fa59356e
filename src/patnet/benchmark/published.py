"""What others published: top-1 accuracies with their sources, families, and who is compared with whom."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["FAMILY", "Published", "family_of", "partners", "peers", "published", "sources"]

FAMILY = tuple(
    f"{family}_{variant}" for variant in ("t0", "t1", "t2", "s", "m", "l") for family in ("patnet", "fasternet")
)

# A peer is compared with the PATNet whose accuracy is no further away than this, in percentage points.
ABOUT_AS_ACCURATE = 1.0


@dataclass(frozen=True)
class Published:
    """An accuracy: ImageNet-1K top-1 in %, for square pictures with sides of `size` px, and where it was read."""

    family: str
    top1: float
    size: int
    source: str
    weights: str | None = None
    distilled: bool = False


@cache
def _data() -> dict:
    return json.loads((files(__package__) / "published.json").read_text(encoding="utf-8"))


@cache
def published() -> dict[str, Published]:
    """Published accuracies by model; a model without a source is not there."""
    return {name: Published(**entry) for name, entry in _data()["models"].items()}


def sources() -> dict[str, dict[str, str]]:
    """What each source is, and its address."""
    return _data()["sources"]


def family_of(model: str) -> str:
    """The name under which a model is drawn."""
    if model in published():
        return published()[model].family
    return "PATNet" if model.startswith("patnet_") else re.split(r"[_.]", model)[0]


def peers() -> tuple[str, ...]:
    """What one would take instead: the models with a published accuracy that are neither PATNet nor FasterNet."""
    return tuple(name for name in published() if name not in FAMILY)


def partners(models: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Who is compared with whom: each model that others are divided by, and those others.

    FasterNets stand beside the PATNet of the same size, other models beside the PATNet that was published with about
    the same accuracy. Where nobody has a partner by these rules the first model is compared with all others.
    """
    accuracy = {name: entry.top1 for name, entry in published().items()}
    known = [m for m in models if m.startswith("patnet_") and m in accuracy]
    groups: dict[str, list[str]] = {}
    for model in models:
        twin = model.replace("fasternet_", "patnet_") if model.startswith("fasternet_") else None
        if twin is None and not model.startswith("patnet_") and model in accuracy:
            twin = min(known, key=lambda m: abs(accuracy[m] - accuracy[model]), default=None)
            if twin and abs(accuracy[twin] - accuracy[model]) > ABOUT_AS_ACCURATE:
                twin = None
        if twin and twin in models:
            groups.setdefault(twin, []).append(model)
        else:
            groups.setdefault(model, [])
    if not any(groups.values()) and len(models) > 1:
        return [(models[0], list(models[1:]))]
    return list(groups.items())
