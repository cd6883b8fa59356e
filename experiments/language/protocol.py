"""The protocol: sizes, configurations, budget, and the runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from patnet import InputError
from patnet.errors import nearest

from .gpt import GPT, CausalAttention, GPTConfig

SEEDS, SEARCH_SEED = (0, 1, 2), 100  # the learning rate is chosen with a seed of its own
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)  # at the width of SEARCH_SIZE; at other widths times its width / width
SEARCH_SIZE = "small"

# Width, blocks, heads.
SIZES = {"small": (128, 6, 4), "medium": (192, 8, 4), "large": (320, 10, 8), "30m": (512, 10, 8)}

# Arguments of the model. `match`: fewer channels, or blocks and then channels, until FLOPs are about pat_sf-1-2's.
CONFIGURATIONS: dict[str, dict] = {
    "full": {},
    "nanogpt": {"learned_positions": True},
    "pat_sf-1-4": {"convolved": 1 / 4},
    "pat_sf-1-2": {"convolved": 1 / 2},
    "pat_sf-3-4": {"convolved": 3 / 4},
    "pat_ch": {"gated": 1 / 2},
    "pat_ch-sf": {"gated": 1 / 2, "convolved": 1 / 4},
    "narrow": {"match": "width"},
    "shallow": {"match": "layers"},
    "full-conv": {"convolved": 1 / 2, "added": True},
    "gqa-1-2": {"kv_heads": 1 / 2},
    "gqa-1-4": {"kv_heads": 1 / 4},
}
BASELINE = "full"
# The configuration on which the learning rate of a family is chosen, by configuration.
FAMILY = dict.fromkeys(CONFIGURATIONS, "full") | {"nanogpt": "nanogpt", "pat_ch": "pat_ch", "pat_ch-sf": "pat_ch"}
FAMILY |= {name: "pat_sf-1-2" for name in CONFIGURATIONS if name.startswith("pat_sf")}
SCALED = ("full", "pat_sf-1-4", "pat_sf-1-2", "pat_ch", "shallow", "gqa-1-2")  # at the other sizes


@dataclass(frozen=True)
class Budget:
    """What a run reads, at every size: 4.2 million tokens by default.

    Args:
        steps: Number of steps.
        batch: Number of sequences of a step.
        context: Length of the sequences in tokens.
        windows: Number of windows of each text, of that length, on which the loss is measured.
    """

    steps: int = 1024
    batch: int = 8
    context: int = 512
    windows: int = 256


class Run(NamedTuple):
    """A run: what is trained, and with which learning rate and seed."""

    size: str
    configuration: str
    rate: float
    seed: int


Results = Mapping[Run, dict[str, Any]]


def model_config(size: str, configuration: str, vocab_size: int, context: int = Budget.context) -> GPTConfig:
    """The arguments of a configuration's model.

    Raises:
        InputError: If there is no such size or configuration.
    """
    for name, known, what in ((size, SIZES, "size"), (configuration, CONFIGURATIONS, "configuration")):
        if name not in known:
            raise InputError(f"{name}: no {what}{nearest(name, known)}; there are {', '.join(known)}")
    width, layers, heads = SIZES[size]
    own = dict(CONFIGURATIONS[configuration])
    match = own.pop("match", None)
    own |= {"gated": round(own.get("gated", 0) * layers), "kv_heads": round(own.get("kv_heads", 0) * heads)}
    if match is None:
        return GPTConfig(vocab_size, context, layers, width, heads, **own)
    target, full = (flops(model_config(size, name, vocab_size)) for name in ("pat_sf-1-2", "full"))
    layers = round(layers * target / full) if match == "layers" else layers
    widths = range(width // 2, width + 1, 2 * heads)  # rotary positions take pairs of channels
    candidates = [GPTConfig(vocab_size, context, layers, width, heads) for width in widths]
    return min(candidates, key=lambda config: abs(flops(config) - target))


def flops(config: GPTConfig, context: int = Budget.context) -> int:
    """FLOPs of a forward pass for a token, the mean of a context: two for each weight of a matrix, and attention."""
    with torch.device("meta"):
        model = GPT(config)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and n != "positions.weight")
    attended = sum(m.proj.in_features for m in model.modules() if isinstance(m, CausalAttention))
    return 2 * weights + 2 * (context + 1) * attended


def best_rate(family: str, done: Results) -> float:
    """The learning rate of the search with the lowest loss on validation text."""
    searched = {
        run.rate: result for run, result in done.items() if (run.configuration, run.seed) == (family, SEARCH_SEED)
    }
    bits = {rate: result["texts"]["validation"]["bits_per_byte"] for rate, result in searched.items()}
    return min(bits, key=lambda rate: min(math.inf, bits[rate]))  # which is inf for NaN


def search_runs(done: Results) -> list[Run]:
    """The runs that choose the learning rates: the middle three, then those beside the best."""
    found = []
    for family in dict.fromkeys(FAMILY.values()):
        rates = RATES[1:-1]
        if all(Run(SEARCH_SIZE, family, rate, SEARCH_SEED) in done for rate in rates):
            best = RATES.index(best_rate(family, done))
            rates = RATES[int(best > 1) : 4 + (best > 2)]
        found += [Run(SEARCH_SIZE, family, rate, SEARCH_SEED) for rate in rates]
    return found


def runs_of(sizes: Sequence[str], done: Results) -> list[Run]:
    """The runs of sizes, with the learning rates that the search chose."""
    return [
        Run(size, name, best_rate(FAMILY[name], done) * SIZES[SEARCH_SIZE][0] / SIZES[size][0], seed)
        for size in sizes
        for name in (CONFIGURATIONS if size == SEARCH_SIZE else SCALED)
        for seed in (SEEDS[:1] if size == "30m" else SEEDS)
    ]
