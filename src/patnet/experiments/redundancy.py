"""Are the channels of a layer alike? That they are is the premise of partial convolution.

Looked at is the input of every block, which its mixer splits into a convolved and an untouched part. Channels are
alike if they are correlated over positions and pictures, and a layer is redundant if fewer directions than channels
carry its variance. Beside the network stand two controls: the same maps, each channel's taken from another picture and
shifted, which keeps its values and their smoothness and only parts it from the other channels; and the network before
training.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..inspection.listening import find_layers, listening, picture_batches
from ..nn import PATBlock, RelativePosition
from ..train.figures import BLUE, GREEN, ORANGE
from .gaussianity import quantiles

__all__ = [
    "correlation_of",
    "draw_correlations",
    "draw_redundancy",
    "effective_rank",
    "participation_ratio",
    "redundancy",
    "to_markdown",
    "untrained_like",
]

TRAINED, SHUFFLED, UNTRAINED = "network", "shuffled", "random weights"
KINDS = (TRAINED, SHUFFLED, UNTRAINED)
BINS = 20  # of the histogram of correlations
DRAWN = 128  # channels of a matrix that is kept for drawing


def effective_rank(covariance: np.ndarray) -> float:
    """Exponential of the entropy of the eigenvalues' shares (Roy and Vetterli, 2007); 0 without variance.

    It is k where k directions carry the same variance and the others none.
    """
    shares = _shares(covariance)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def participation_ratio(covariance: np.ndarray) -> float:
    """Square of the eigenvalues' sum over the sum of their squares, likewise; counts small directions less."""
    shares = _shares(covariance)
    return float(1 / (shares**2).sum()) if len(shares) else 0.0


def _shares(covariance: np.ndarray) -> np.ndarray:
    eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0) if len(covariance) else np.empty(0)
    total = eigenvalues.sum()
    shares = eigenvalues / total if total > 0 else np.empty(0)
    return shares[shares > 1e-12]


def correlation_of(covariance: np.ndarray) -> np.ndarray:
    """Correlations `(C, C)` from covariances, NaN for the channels without variance."""
    deviation = np.sqrt(np.diag(covariance))
    deviation = np.where(deviation > 0, deviation, np.nan)
    return (covariance / np.outer(deviation, deviation)).clip(-1, 1)


class _Covariance:
    """Covariance of channels over any number of values, of which none is kept (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.scatter: Any = 0.0

    def add(self, values: Tensor) -> None:
        """Take `(n, C)` values."""
        values = values.double()
        mean = values.mean(0)
        centred = values - mean
        apart = mean - self.mean
        total = self.count + len(values)
        self.scatter = self.scatter + centred.T @ centred + torch.outer(apart, apart) * self.count * len(values) / total
        self.mean = self.mean + apart * len(values) / total
        self.count = total

    def __call__(self) -> np.ndarray:
        return (self.scatter / max(self.count - 1, 1)).numpy()


class _Drawn:
    """Covariances of a layer's maps, and of the same shuffled, from some positions of each picture."""

    def __init__(self, positions: int, generator: torch.Generator) -> None:
        self.positions, self.generator = positions, generator
        self.together, self.shuffled = _Covariance(), _Covariance()
        self.map_size = [0, 0]

    def add(self, x: Tensor) -> None:
        """Draw from `x`, `(N, C, H, W)`."""
        x = x.cpu()
        pictures, channels, height, width = x.shape
        self.map_size = [height, width]
        places = torch.rand(pictures, height * width, generator=self.generator).argsort(1)[:, : self.positions]
        row, col = (places // width).unsqueeze(1), (places % width).unsqueeze(1)  # (N, 1, positions)
        picture = torch.arange(pictures).view(-1, 1, 1)
        channel = torch.arange(channels).view(1, -1, 1)
        self.together.add(x[picture, channel, row, col].transpose(1, 2).flatten(0, 1))
        if pictures == 1:  # there is no other picture to take a channel from
            return

        def draw(below: int) -> Tensor:
            return torch.randint(below, (pictures, channels, 1), generator=self.generator)

        other = torch.rand(pictures, channels, 1, generator=self.generator).argsort(0)
        apart = x[other, channel, (row + draw(height)) % height, (col + draw(width)) % width]
        self.shuffled.add(apart.transpose(1, 2).flatten(0, 1))


def untrained_like(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """The network with random weights, as before its training, and norms with the statistics of `images`.

    Without them every norm would pass on what the small start values leave, and the activations would act as straight
    lines.

    Args:
        model: The network; it is copied.
        images: `(N, in_chans, H, W)`, a batch.
        seed: Of the weights.
    """
    device = next(model.parameters()).device
    other: Any = copy.deepcopy(model).cpu()  # where the same seed gives the same weights for every device
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
        norms = [module for module in other.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        other(images)
    return other.eval()


def _describe(covariance: np.ndarray) -> dict[str, Any]:
    """Figures of a covariance `(C, C)`."""
    live = np.diag(covariance) > 0
    correlation = correlation_of(covariance[np.ix_(live, live)])
    size = np.abs(correlation)
    pairs = size[np.triu_indices(len(size), 1)]
    np.fill_diagonal(size, 0)
    return {
        "constant": int((~live).sum()),
        "effective_rank": effective_rank(correlation),
        "participation_ratio": participation_ratio(correlation),
        "effective_rank_of_covariance": effective_rank(covariance),
        "participation_ratio_of_covariance": participation_ratio(covariance),
        "correlation": quantiles(pairs),
        "histogram": np.histogram(pairs, BINS, (0, 1))[0].tolist(),
        "nearest": quantiles(size.max(axis=1)) if len(size) > 1 else None,
    }


def redundancy(
    model: nn.Module, pictures: Tensor | Iterable[Any], *, positions: int = 128, seed: int = 0
) -> dict[str, Any]:
    """Correlations between the channels of each block's input, and the effective rank of their covariance.

    Args:
        model: The network, as trained, not fused; its mode is restored after.
        pictures: `(N, in_chans, H, W)`, or a loader; see `picture_batches`. Any number: of their values only sums are
            kept.
        positions: Positions of a picture that are drawn from each layer.
        seed: Of the draws and the random weights.

    Returns:
        `layers`, each with the figures of the `network`, of its maps `shuffled` and of the network with
        `random weights`: quantiles and a histogram over [0, 1] of the absolute correlation over the pairs of channels,
        the same of each channel with its `nearest`, effective rank and participation ratio of the correlations (every
        channel counts the same) and of the covariances (by its variance), and the number of `constant` channels;
        `matrices`, the correlations in the last block of each stage, of 128 channels at most. All for JSON.

    Raises:
        InputError: If there are no blocks of patnet's, too few pictures for some layer, or only batches of one.
    """
    if positions < 1:
        raise InputError(f"positions={positions}: at least one position of each picture must be drawn")
    layers = find_layers(model, PATBlock)
    if not layers:
        raise InputError("the network has no blocks of patnet.nn: there are no channels to compare")
    batches = picture_batches(model, pictures)
    first = next(batches, None)
    if first is None:
        raise InputError("there are no pictures: give at least as many as make more values than a layer has channels")
    untrained = untrained_like(model, first, seed)
    drawn = {}
    hooks: dict[str, list[tuple[nn.Module, str, Callable[[Tensor], None]]]] = {}
    for kind, network in ((TRAINED, model), (UNTRAINED, untrained)):
        generator = torch.Generator().manual_seed(seed)
        drawn[kind] = [_Drawn(positions, generator) for _ in layers]
        found = find_layers(network, PATBlock)
        hooks[kind] = [(layer.module, "input", d.add) for layer, d in zip(found, drawn[kind], strict=True)]
    seen = 0
    with listening(model, hooks[TRAINED]), listening(untrained, hooks[UNTRAINED]):
        for images in chain((first,), batches):
            model(images)
            untrained(images)
            seen += len(images)
    rows, matrices = [], []
    for layer, here, random in zip(layers, drawn[TRAINED], drawn[UNTRAINED], strict=True):
        channels = len(here.together.mean)
        if here.together.count <= channels:
            each = here.together.count / seen
            raise InputError(
                f"{seen} pictures give {here.together.count} values in {layer.name}, too few for its {channels} "
                f"channels: give at least {math.floor(channels / each) + 1} pictures"
            )
        if here.shuffled.count == 0:
            raise InputError("batches of one picture cannot be shuffled: give batches of at least two, better 32")
        covariances = {TRAINED: here.together(), SHUFFLED: here.shuffled(), UNTRAINED: random.together()}
        place = {"layer": layer.name, "label": layer.label, "stage": layer.stage, "map": here.map_size}
        figures = {kind: _describe(covariance) for kind, covariance in covariances.items()}
        rows.append(place | {"channels": channels, "values": here.together.count} | figures)
        if layer.stage not in [other.stage for other in layers[len(rows) :]]:  # the last of its stage
            some = np.unique(np.linspace(0, channels - 1, min(channels, DRAWN)).astype(int))
            convolved = getattr(layer.module.mixer, "split", [0])[0]
            of_kind = {
                kind: np.nan_to_num(correlation_of(covariance)[np.ix_(some, some)]).round(3).tolist()
                for kind, covariance in covariances.items()
            }
            matrices.append(place | {"channels": some.tolist(), "convolved": convolved} | of_kind)
    return {"pictures": seen, "positions": positions, "seed": seed, "layers": rows, "matrices": matrices}


def draw_redundancy(result: Mapping[str, Any]) -> Figure:
    """Effective rank over channels by layer, and the correlations of the pairs, of the network and both controls."""
    layers = result["layers"]
    places = list(range(len(layers)))
    figure = Figure(figsize=(max(13.0, 0.85 * len(layers)), 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    colors = {TRAINED: ORANGE, UNTRAINED: BLUE, SHUFFLED: GREEN}
    names = {TRAINED: "network", UNTRAINED: "random weights", SHUFFLED: "channels from different pictures and places"}
    for axes, key in zip(panels, ("effective_rank", "effective_rank_of_covariance"), strict=False):
        for kind, color in colors.items():
            share = [layer[kind][key] / layer["channels"] for layer in layers]
            axes.plot(places, share, ".-", color=color, label=names[kind])
        axes.set(ylim=(0, 1.04))
    panels[0].set_title("Effective rank over channels,\nevery channel counts the same", fontsize=10)
    panels[1].set_title("Effective rank over channels,\nchannels count by their variance", fontsize=10)
    for kind, color in colors.items():
        known = [layer[kind]["correlation"] or {} for layer in layers]
        panels[2].fill_between(
            places, *([q.get(share, np.nan) for q in known] for share in ("5", "95")), color=color, alpha=0.15, lw=0
        )
        panels[2].plot(places, [q.get("50", np.nan) for q in known], ".-", color=color)
    panels[2].set(ylim=(0, 1.04))
    panels[2].set_title("Absolute correlation of two channels,\nmedian and 5 to 95 % of the pairs", fontsize=10)
    for axes in panels:
        axes.set_xticks(places, [layer["label"] for layer in layers], rotation=90 if len(layers) > 15 else 0)
        axes.set_xlabel("input of stage.block", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"How alike the channels of a layer are, over {result['pictures']} pictures", fontsize=11)
    return figure


def draw_correlations(result: Mapping[str, Any]) -> Figure:
    """Correlations between the channels in the last block of each stage, of the network and of both controls."""
    matrices = result["matrices"]
    figure = Figure(figsize=(2.9 * len(matrices) + 1.2, 3.05 * len(KINDS) + 0.6), layout="constrained")
    grid = figure.subplots(len(KINDS), len(matrices), squeeze=False)
    for kind, row in zip(KINDS, grid, strict=True):
        for axes, matrix in zip(row, matrices, strict=True):
            channels = matrix["channels"]
            image = axes.imshow(np.array(matrix[kind]), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            edge = int(np.searchsorted(channels, matrix["convolved"])) - 0.5
            if edge > 0:
                axes.axhline(edge, color="black", lw=0.7)
                axes.axvline(edge, color="black", lw=0.7)
            ticks = np.unique(np.linspace(0, len(channels) - 1, 4).astype(int))
            axes.set_xticks(ticks, [channels[i] for i in ticks], fontsize=8)
            axes.set_yticks(ticks, [channels[i] for i in ticks], fontsize=8)
            axes.set_title(f"{kind}, block {matrix['label']}", fontsize=9.5)
    for axes in grid[-1]:
        axes.set_xlabel("channel", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("channel", fontsize=9)
    figure.colorbar(image, ax=grid, label="correlation over positions and pictures", shrink=0.6)
    figure.suptitle(
        f"Channels of a layer against each other, {result['pictures']} pictures; lines: end of the convolved part",
        fontsize=10.5,
    )
    return figure


def _rank_share(layer: Mapping[str, Any], kind: str) -> float:
    return layer[kind]["effective_rank"] / layer["channels"]


def finding(result: Mapping[str, Any]) -> str:
    """What the figures show, in a sentence."""
    layers = result["layers"]
    middle = {kind: 100 * np.median([_rank_share(layer, kind) for layer in layers]) for kind in KINDS}
    fewer = [sum(_rank_share(layer, TRAINED) < _rank_share(layer, kind) for layer in layers) for kind in KINDS[1:]]
    return (
        f"Over {result['pictures']} pictures the effective rank is {middle[TRAINED]:.0f} % of the channels (median of "
        f"{len(layers)} layers), where the same maps shuffled give {middle[SHUFFLED]:.0f} % and random weights "
        f"{middle[UNTRAINED]:.0f} %; it is below the shuffled maps' in {fewer[0]} layers, and below that of random "
        f"weights in {fewer[1]}."
    )


def to_markdown(result: Mapping[str, Any]) -> str:
    """A table by layer, a sentence of what the figures show, and one of what they cannot show."""
    lines = [
        "| input of block | channels | effective rank / channels | shuffled | random weights "
        "| correlation of a pair, median | shuffled | random weights | with the nearest, median |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def median(layer: Mapping[str, Any], kind: str, key: str = "correlation") -> str:
        return f"{layer[kind][key]['50']:.2f}" if layer[kind][key] else "-"

    for layer in result["layers"]:
        cells = [layer["label"], str(layer["channels"])]
        cells += [f"{_rank_share(layer, kind):.2f}" for kind in KINDS]
        cells += [median(layer, kind) for kind in KINDS]
        lines.append(f"| {' | '.join([*cells, median(layer, TRAINED, 'nearest')])} |")
    return "\n".join(
        [
            *lines,
            "",
            finding(result),
            "This does not show that leaving channels unconvolved costs no accuracy: correlation sees only what is "
            "alike in a straight line, on these pictures, and directions of little variance may matter.",
            "",
        ]
    )
