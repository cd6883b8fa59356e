"""Are the channels of a layer similar? That they are is the premise of partial convolution.

Analysed is the input of every block, which its mixer splits into convolved and untouched channels. Channels are similar
if they are correlated over positions and images, and a layer is redundant if fewer directions than channels carry its
variance. There are two controls: the same maps shuffled (each channel comes from another image and is shifted, which
keeps its values and their autocorrelation, and removes what it shares with other channels), and the network with random
weights.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gaussianity import quantiles
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from patnet import InputError
from patnet.bench import markdown_table
from patnet.inspection.hooks import Hook, find_layers, hooked, image_batches
from patnet.nn import PATBlock, RelativePosition
from patnet.train.figures import COLORS

TRAINED, SHUFFLED, RANDOM = "network", "shuffled", "random weights"
LINES = {RANDOM: COLORS[0], TRAINED: COLORS[1], SHUFFLED: COLORS[2]}


def effective_rank(covariance: np.ndarray) -> float:
    """Exponential of the entropy of the normalised eigenvalues (Roy and Vetterli, 2007); 0 without variance.

    It is k if k directions carry the same variance and the others none.
    """
    eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0) if len(covariance) else np.zeros(1)
    shares = eigenvalues / (eigenvalues.sum() or 1)
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def correlation_of(covariance: np.ndarray) -> np.ndarray:
    """Correlations `(C, C)` from covariances, NaN for channels without variance."""
    std = np.sqrt(np.diag(covariance))
    std = np.where(std > 0, std, np.nan)
    return (covariance / np.outer(std, std)).clip(-1, 1)


class Covariance:
    """Covariance of channels over batches of values (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.scatter: Any = 0.0

    def add(self, values: Tensor) -> None:
        """Add `(n, C)` values."""
        values = values.double()
        mean = values.mean(0)
        centred = values - mean
        shift = mean - self.mean
        total = self.count + len(values)
        self.scatter = self.scatter + centred.T @ centred + torch.outer(shift, shift) * self.count * len(values) / total
        self.mean = self.mean + shift * len(values) / total
        self.count = total

    def compute(self) -> np.ndarray:
        """The covariance `(C, C)`."""
        return (self.scatter / max(self.count - 1, 1)).numpy()


class _Maps:
    """Covariances of the maps of a layer and of the same maps shuffled, from random positions of each image."""

    def __init__(self, positions: int, generator: torch.Generator) -> None:
        self.positions, self.generator = positions, generator
        self.together, self.shuffled = Covariance(), Covariance()

    def add(self, x: Tensor) -> None:
        """Add maps `(N, C, H, W)`."""
        x = x.cpu()
        images, channels, height, width = x.shape
        position = torch.rand(images, height * width, generator=self.generator).argsort(1)[:, : self.positions]
        row, col = (position // width).unsqueeze(1), (position % width).unsqueeze(1)  # (N, 1, positions)
        image = torch.arange(images).view(-1, 1, 1)
        channel = torch.arange(channels).view(1, -1, 1)
        self.together.add(x[image, channel, row, col].transpose(1, 2).flatten(0, 1))
        if images == 1:  # there is no other image to take a channel from
            return
        other = torch.rand(images, channels, 1, generator=self.generator).argsort(0)
        down = torch.randint(height, (images, channels, 1), generator=self.generator)
        right = torch.randint(width, (images, channels, 1), generator=self.generator)
        shuffled = x[other, channel, (row + down) % height, (col + right) % width]
        self.shuffled.add(shuffled.transpose(1, 2).flatten(0, 1))


def random_copy(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """The network with new random weights, and norms with the statistics of `images`.

    Without these statistics every norm would pass on the small values of the initial weights, and the activations would
    be almost linear.
    """
    device = next(model.parameters()).device
    other: Any = copy.deepcopy(model).cpu()  # where a seed gives the same weights whatever the device
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in other.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, RelativePosition):
                module.table.zero_()
        if hasattr(other, "init_weights"):
            other.init_weights()
        other.to(device).eval()
        for norm in other.modules():
            if isinstance(norm, _BatchNorm):
                norm.train()
                norm.momentum = 1.0
        other(images)
    return other.eval()


def _describe(covariance: np.ndarray) -> dict[str, Any]:
    """Figures of a covariance `(C, C)`."""
    varies = np.diag(covariance) > 0
    correlation = correlation_of(covariance[np.ix_(varies, varies)])
    size = np.abs(correlation)
    pairs = size[np.triu_indices(len(size), 1)]
    np.fill_diagonal(size, 0)
    return {
        "constant": int((~varies).sum()),
        "effective_rank": effective_rank(correlation),
        "effective_rank_of_covariance": effective_rank(covariance),
        "correlation": quantiles(pairs),
        "nearest": quantiles(size.max(axis=1)) if len(size) > 1 else None,
    }


def redundancy(model: nn.Module, images: Tensor, *, positions: int = 128, seed: int = 0) -> dict[str, Any]:
    """Correlations between the channels of the input of each block, and the effective rank of their covariance.

    The network is unfused, images are `(N, in_chans, H, W)`; at most `positions` values are drawn from each map; `seed`
    is that of the positions, the shuffling and the random weights.

    Returns:
        `layers`, each with the figures of the `network`, of its maps `shuffled`, and of the network with `random
        weights`: quantiles of the absolute correlation over the pairs of channels (`correlation`) and of each channel
        with its `nearest`, effective rank of the correlations (all channels have equal weight) and of the covariances
        (weighted by variance), and the number of `constant` channels. All as JSON.

    Raises:
        InputError: If the network has no `PATBlock`, or there are too few images.
    """
    layers = find_layers(model, PATBlock)
    if not layers:
        raise InputError("the network has no PATBlock of patnet.nn: there are no channels to compare")
    if len(images) < 2:
        raise InputError(f"{len(images)} images cannot be shuffled: give at least 2, and more values than channels")
    batches = list(image_batches(model, images))
    sources = {TRAINED: model, RANDOM: random_copy(model, batches[0], seed)}
    maps = {}
    for source, network in sources.items():
        generator = torch.Generator().manual_seed(seed)
        maps[source] = [_Maps(positions, generator) for _ in layers]
        found = find_layers(network, PATBlock)
        hooks = [Hook(layer.module, "input", m.add) for layer, m in zip(found, maps[source], strict=True)]
        with hooked(network, hooks):
            for batch in batches:
                network(batch)
    rows = []
    for layer, trained, random in zip(layers, maps[TRAINED], maps[RANDOM], strict=True):
        channels, values = len(trained.together.mean), trained.together.count
        if values <= channels:
            needed = math.floor(channels / (values / len(images))) + 1
            raise InputError(
                f"{len(images)} images give {values} values in {layer.name}, too few for its {channels} channels: "
                f"give at least {needed} images"
            )
        covariances = {TRAINED: trained.together, SHUFFLED: trained.shuffled, RANDOM: random.together}
        place = {"label": layer.label, "stage": layer.stage, "channels": channels, "values": values}
        rows.append(place | {source: _describe(covariance.compute()) for source, covariance in covariances.items()})
    return {"images": len(images), "positions": positions, "seed": seed, "layers": rows}


def measure(networks: Iterator[tuple[str, nn.Module, Tensor]]) -> dict[str, Any]:
    """The analysis of an experiment: of its first configuration."""
    name, model, images = next(networks)
    return {"configuration": name, **redundancy(model, images)}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Effective rank by layer, and the correlations of pairs of channels, of the network and both controls."""
    layers = result["layers"]
    places = list(range(len(layers)))
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    rank, correlation = figure.subplots(1, 2)
    for source, color in LINES.items():
        for key, style in (("effective_rank", ".-"), ("effective_rank_of_covariance", ".:")):
            shares = [layer[source][key] / layer["channels"] for layer in layers]
            rank.plot(places, shares, style, color=color, label=source if style == ".-" else None)
        known = [layer[source]["correlation"] or {} for layer in layers]
        ends = ([q.get(share, np.nan) for q in known] for share in ("5", "95"))
        correlation.fill_between(places, *ends, color=color, alpha=0.15, lw=0)
        correlation.plot(places, [q.get("50", np.nan) for q in known], ".-", color=color)
    rank.set_title("Effective rank / channels\n(dotted: weighted by variance)", fontsize=10)
    correlation.set_title("Absolute correlation of two channels\n(median, 5 to 95 % of the pairs)", fontsize=10)
    for axes in (rank, correlation):
        axes.set(ylim=(0, 1.04))
        axes.set_xticks(places, [layer["label"] for layer in layers], rotation=90 if len(layers) > 10 else 0)
        axes.set_xlabel("input of stage.block", fontsize=9)
        axes.tick_params(labelsize=9)
        axes.grid(alpha=0.3)
    handles, labels = rank.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return {"rank": figure}


def _share(layer: Mapping[str, Any], source: str) -> float:
    return layer[source]["effective_rank"] / layer["channels"]


def finding(result: Mapping[str, Any]) -> str:
    """What the figures show, in one sentence."""
    layers = result["layers"]
    middle = {source: 100 * np.median([_share(layer, source) for layer in layers]) for source in LINES}
    below = [sum(_share(layer, TRAINED) < _share(layer, source) for layer in layers) for source in (SHUFFLED, RANDOM)]
    return (
        f"Over {result['images']} images the effective rank is {middle[TRAINED]:.0f} % of the channels (median of "
        f"{len(layers)} layers), {middle[SHUFFLED]:.0f} % with shuffled maps and {middle[RANDOM]:.0f} % with random "
        f"weights; it is below that of shuffled maps in {below[0]} layers, and of random weights in {below[1]}."
    )


def to_markdown(result: Mapping[str, Any]) -> str:
    """A table by layer, and one sentence of what it cannot show."""
    sources, rows = (TRAINED, SHUFFLED, RANDOM), []
    for layer in result["layers"]:
        quantile = [layer[source]["correlation"] for source in sources]
        medians = [f"{q['50']:.2f}" if q else "-" for q in (*quantile, layer[TRAINED]["nearest"])]
        ranks = [f"{_share(layer, source):.2f}" for source in sources]
        rows.append([layer["label"], str(layer["channels"]), *ranks, *medians])
    columns = [f"{what}, {source}" for what in ("rank", "correlation") for source in sources]
    table = markdown_table(["input of block", "channels", *columns, f"nearest, {TRAINED}"], rows)
    return (
        f"Of {result['configuration']}, first seed: effective rank / channels; median absolute correlation of two "
        "channels, and of each channel with the nearest one.\n\n"
        + "\n".join(table)
        + "\n\nThis does not show that untouched channels cost no accuracy: correlation sees only linear similarity, "
        "on these images, and directions of little variance may matter."
    )
