"""Are the values of a channel normal? The paper's channel attention describes them by mean and deviation alone.

Each map is standardised by its own mean and deviation, which is what `GaussianChannelAttention` keeps of it; what is
left is its shape, and that is compared with the normal distribution's. The values of a test are drawn from many
pictures, a few from each, for those of one map lie beside each other and are not independent.

Any test rejects normality with enough values, for nothing that a network computes is exactly normal, and rejects
nothing with too few. So every layer is tested on the same number of values, and beside its channels stand maps of the
same size that are known: normal ones, normal ones as smooth as the network's, and exponential ones. They go the same
way, so that what standardising small or smooth maps does to the figures is in them too.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter
from scipy import stats
from torch import Tensor, nn

from ..errors import InputError
from ..inspection.listening import Layer, find_layers, listening, picture_batches
from ..nn import MLP, PAT_ch
from ..train.figures import BLUE, GREEN, ORANGE

__all__ = [
    "draw_histograms",
    "draw_moments",
    "gaussianity",
    "quantiles",
    "to_markdown",
]

POINTS = ("untouched", "before activation", "after activation")
# What is tested: the network's maps, and three kinds of maps that are known.
KINDS = ("maps", "normal, as smooth", "normal", "exponential")
RANKS = ("nearest", "median", "farthest")
LEVEL = 0.05
MIN_SAMPLE = 20  # the least for which the test's approximation holds (D'Agostino and Pearson)
MIN_POSITIONS = 16  # the fewer values a map has, the less is left of its shape once it is standardised


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    """Quantiles by their per cent, `"5"` to `"95"`, without the undefined ones; None if there are no others."""
    defined = values[np.isfinite(values)]
    shares = (5, 25, 50, 75, 95)
    return dict(zip(map(str, shares), np.percentile(defined, shares).tolist(), strict=True)) if len(defined) else None


def _standardise(maps: Tensor) -> Tensor:
    """Each map less its mean, over its deviation; NaN where it is constant. `(N, C, H, W)` to `(N, C, H * W)`."""
    flat = maps.flatten(2)
    constant = flat.amax(2, keepdim=True) == flat.amin(2, keepdim=True)
    scaled = (flat - flat.mean(2, keepdim=True)) / flat.std(2, keepdim=True)
    return scaled.masked_fill(constant, math.nan)


class _Sample:
    """Standardised values of all channels, drawn evenly from however many pictures: a reservoir.

    Every value that could be drawn gets a random key, and those with the least are kept; the same places for all
    channels.

    Args:
        capacity: Values that are kept for each channel.
        per_picture: Values that can be drawn from one map.
        generator: Draws the keys, the places and the maps that are known.
    """

    def __init__(self, capacity: int, per_picture: int, generator: torch.Generator) -> None:
        self.capacity, self.per_picture, self.generator = capacity, per_picture, generator
        self.keys = torch.empty(0)
        self.values: Tensor | None = None  # (kinds, C, kept)
        self.map_size = [0, 0]
        self.power: Tensor | None = None  # (C, H, W), summed over the maps that values were drawn from

    def add(self, x: Tensor) -> None:
        """Draw from `x`, `(N, C, H, W)`, unless its maps are too small."""
        pictures, _, height, width = x.shape
        self.map_size = [height, width]
        if height * width < MIN_POSITIONS:
            return
        keys = torch.cat((self.keys, torch.rand(pictures * self.per_picture, generator=self.generator)))
        kept = keys.topk(min(self.capacity, len(keys)), largest=False).indices
        old, new = kept[kept < len(self.keys)], kept[kept >= len(self.keys)] - len(self.keys)
        if not len(new):
            return
        places = torch.rand(pictures, height * width, generator=self.generator).argsort(1)[:, : self.per_picture]
        # Only the maps that a value is drawn from are looked at: of thousands of pictures, few.
        drawn, which = (new // self.per_picture).unique(return_inverse=True)
        maps = x[drawn.to(x.device)].cpu().double()
        noise = torch.randn(maps.shape, generator=self.generator, dtype=torch.float64)
        exponential = torch.empty_like(maps).exponential_(generator=self.generator)
        place = places.flatten()[new]
        known = (self._as_smooth(maps, noise), noise, exponential)
        values = torch.stack([_standardise(kind)[which, :, place].T for kind in (maps, *known)])
        self.values = values if self.values is None else torch.cat((self.values[:, :, old], values), dim=2)
        self.keys = keys[torch.cat((old, new + len(self.keys)))]

    def _as_smooth(self, maps: Tensor, noise: Tensor) -> Tensor:
        """Normal maps with the spatial autocorrelation of a channel's maps: white noise, filtered by their spectrum.

        The spectrum is a mean over maps, for that of a single one is far more peaked than what it is a sample of.
        """
        scaled = _standardise(maps).nan_to_num().view_as(maps)
        power = torch.fft.fft2(scaled).abs().square().sum(0)
        self.power = power if self.power is None or self.power.shape != power.shape else self.power + power
        return torch.fft.ifft2(torch.fft.fft2(noise) * self.power.sqrt()).real


def _describe(values: np.ndarray, sample: int) -> dict[str, Any]:
    """Skewness, excess kurtosis and D'Agostino and Pearson's test of each row, on its first `sample` defined values.

    Args:
        values: `(C, n)`, NaN where a map was constant.
        sample: Values of a test.

    Returns:
        Arrays over the channels, NaN for those with fewer values; `distance` is the test's statistic.
    """
    order = np.isnan(values).argsort(axis=1, kind="stable")[:, :sample]
    first = np.take_along_axis(values, order, axis=1)
    tested = ~np.isnan(first).any(axis=1)
    result = {key: np.full(len(values), np.nan) for key in ("skewness", "kurtosis", "distance", "p")}
    # Equal values of maps that are not constant: each map has a rare other value, and nothing is less normal.
    equal = tested & (first.max(axis=1, initial=-np.inf) == first.min(axis=1, initial=np.inf))
    result["distance"][equal], result["p"][equal] = np.inf, 0.0
    rows = tested & ~equal
    if rows.any():
        result["skewness"][rows] = stats.skew(first[rows], axis=1)
        result["kurtosis"][rows] = stats.kurtosis(first[rows], axis=1)
        result["distance"][rows], result["p"][rows] = stats.normaltest(first[rows], axis=1)
    return {**result, "first": first}


def _rejected(p: np.ndarray) -> dict[str, float | None]:
    """Share of the tests rejected at 5 %: `plain`, and `corrected` so that at most 5 % of those are expected wrong."""
    p = p[~np.isnan(p)]
    if not len(p):
        return {"plain": None, "corrected": None}
    return {
        "plain": float((p <= LEVEL).mean()),
        "corrected": float((stats.false_discovery_control(p) <= LEVEL).mean()),
    }


def _listed(values: np.ndarray) -> list[float | None]:
    """The values for JSON, which has no NaN."""
    return [float(v) if np.isfinite(v) else None for v in values]


def gaussianity(
    model: nn.Module, pictures: Tensor | Iterable[Any], *, sample: int = 200, per_picture: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Skewness, kurtosis and a test of normality for each channel, beside maps of the same size that are known.

    Looked at are the untouched part of each `PAT_ch`, which its channel attention takes, and what goes into and comes
    out of the activation of each `MLP`. The test is D'Agostino and Pearson's (1973), from skewness and kurtosis; the
    correction for many tests is Benjamini and Hochberg's (1995), over the channels of a layer.

    Args:
        model: The network, as trained; its mode is restored after.
        pictures: `(N, in_chans, H, W)`, or a loader; see `picture_batches`. Any number: values are drawn, not kept.
        sample: Values of each test.
        per_picture: Values drawn from a map, at most 16.
        seed: Of the draws.

    Returns:
        `layers`, each with `point` (a name in `POINTS`), figures of each channel (None where constant maps leave too
        few values), `rejected` shares by kind of maps and quantiles of the `known` maps; `examples`, the channels
        nearest to normal, median and farthest of each stage with their values; `left_out`, layers whose maps have
        fewer than 16 values. All for JSON.

    Raises:
        InputError: If there are too few pictures for the test, nothing to look at, or an option is out of range.
    """
    if sample < MIN_SAMPLE:
        raise InputError(f"sample={sample}: the test of normality needs at least {MIN_SAMPLE} values")
    if not 1 <= per_picture <= MIN_POSITIONS:
        raise InputError(
            f"per_picture={per_picture}: must lie between 1 and {MIN_POSITIONS}, the smallest map's values"
        )
    generator = torch.Generator().manual_seed(seed)
    points: list[tuple[str, Layer, _Sample]] = []
    hooks: list[tuple[nn.Module, str, Callable[[Tensor], None]]] = []

    def look(point: str, layer: Layer, module: nn.Module, side: str, first_channel: int = 0) -> None:
        drawn = _Sample(2 * sample, per_picture, generator)  # as many again as the test takes, for constant maps
        points.append((point, layer, drawn))
        hooks.append((module, side, lambda x: drawn.add(x[:, first_channel:])))

    for layer in find_layers(model, PAT_ch):
        look(POINTS[0], layer, layer.module, "input", layer.module.split[0])
    for layer in find_layers(model, MLP):
        look(POINTS[1], layer, layer.module.act, "input")
        look(POINTS[2], layer, layer.module.act, "output")
    if not points:
        raise InputError("the network has neither PAT_ch nor MLP of patnet.nn: there are no values to test")
    seen = 0
    with listening(model, hooks):
        for images in picture_batches(model, pictures):
            model(images)
            seen += len(images)
    if seen * per_picture < sample:
        raise InputError(
            f"{seen} pictures give {seen * per_picture} values for each channel, too few for tests of {sample}: "
            f"give at least {math.ceil(sample / per_picture)} pictures"
        )
    layers, left_out, channels = [], [], []
    for point, layer, drawn in points:
        place = {"layer": layer.name, "label": layer.label, "stage": layer.stage, "point": point}
        place["map"] = drawn.map_size
        if drawn.values is None:
            left_out.append(place)
            continue
        described = {kind: _describe(values.numpy(), sample) for kind, values in zip(KINDS, drawn.values, strict=True)}
        maps = described["maps"]
        layers.append(
            place
            | {"channels": len(maps["p"]), "tested": int((~np.isnan(maps["p"])).sum())}
            | {key: _listed(maps[key]) for key in ("skewness", "kurtosis", "p")}
            | {"rejected": {kind: _rejected(entry["p"]) for kind, entry in described.items()}}
            | {
                "known": {
                    kind: {key: quantiles(described[kind][key]) for key in ("skewness", "kurtosis")}
                    for kind in KINDS[1:]
                }
            }
        )
        channels += [(place, maps, i) for i in np.flatnonzero(np.isfinite(maps["distance"]))]
    if not layers:
        height, width = points[0][2].map_size
        raise InputError(
            f"the largest maps, of {height}x{width} values, are too small to have a shape: give larger pictures, "
            f"for at least {MIN_POSITIONS} values"
        )
    return {
        "pictures": seen,
        "sample": sample,
        "per_picture": per_picture,
        "seed": seed,
        "level": LEVEL,
        "layers": layers,
        "examples": _examples(channels),
        "left_out": left_out,
    }


def _examples(channels: Sequence[tuple[dict[str, Any], dict[str, Any], Any]]) -> list[dict[str, Any]]:
    """The channels nearest to normal, median and farthest by the test's statistic, of each stage and point."""
    groups: dict[tuple[str, int], list[Any]] = {}
    for place, maps, i in channels:
        groups.setdefault((place["point"], place["stage"]), []).append((place, maps, i))
    examples = []
    for group in groups.values():
        group.sort(key=lambda channel: channel[1]["distance"][channel[2]])
        for rank, (place, maps, i) in zip(RANKS, (group[0], group[(len(group) - 1) // 2], group[-1]), strict=True):
            figures = {key: float(maps[key][i]) for key in ("skewness", "kurtosis", "p")}
            examples.append(place | {"rank": rank, "channel": int(i)} | figures | {"values": maps["first"][i].tolist()})
    return examples


def draw_histograms(result: Mapping[str, Any], point: str = "untouched") -> Figure:
    """Histograms of the examples of one point, a row for each stage, with the normal density fitted to each.

    Args:
        result: What `gaussianity` gives.
        point: A name in `POINTS`.

    Raises:
        InputError: If there are no examples of that point.
    """
    examples = [example for example in result["examples"] if example["point"] == point]
    if not examples:
        raise InputError(f"point {point!r}: nothing was tested there; choose from {', '.join(POINTS)}")
    stages = sorted({example["stage"] for example in examples})
    figure = Figure(figsize=(10.5, 2.75 * len(stages) + 0.9), layout="constrained")
    grid = figure.subplots(len(stages), len(RANKS), squeeze=False)
    for example in examples:
        axes = grid[stages.index(example["stage"])][RANKS.index(example["rank"])]
        values = np.array(example["values"])
        low, high = min(-3.0, values.min()), max(3.0, values.max())
        axes.hist(values, bins=np.linspace(low, high, 21), density=True, color=BLUE, alpha=0.55)
        x = np.linspace(low, high, 200)
        axes.plot(x, stats.norm.pdf(x, values.mean(), values.std()), color=ORANGE, lw=1.6)
        height, width = example["map"]
        axes.set_title(
            f"stage {example['stage']} ({height}x{width}), {example['rank']}: block {example['label']}, channel "
            f"{example['channel']}\nskewness {example['skewness']:.2f}, excess kurtosis {example['kurtosis']:.2f}, "
            f"p = {example['p']:.2g}",
            fontsize=8.5,
        )
        axes.tick_params(labelsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("deviations from the map's mean", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("density", fontsize=9)
    said = {"untouched": "Untouched part, as the channel attention takes it"}.get(point, f"MLP, {point}")
    figure.suptitle(
        f"{said}: {result['sample']} values of a channel (blue), the normal fitted to them (red); "
        f"{result['pictures']} pictures",
        fontsize=10.5,
    )
    return figure


def draw_moments(result: Mapping[str, Any]) -> Figure:
    """Skewness, excess kurtosis and share of rejected channels of every layer, a row for each point.

    Boxes hold the middle half of a layer's channels, whiskers 5 to 95 %; grey bands are 5 to 95 % of the channels of
    normal maps that are as smooth.
    """
    points = [point for point in POINTS if any(layer["point"] == point for layer in result["layers"])]
    most = max(sum(layer["point"] == point for layer in result["layers"]) for point in points)
    figure = Figure(figsize=(max(12.0, 1.05 * most), 2.9 * len(points) + 0.9), layout="constrained")
    grid = figure.subplots(len(points), 3, squeeze=False)
    for row, point in zip(grid, points, strict=True):
        layers = [layer for layer in result["layers"] if layer["point"] == point]
        places = range(len(layers))
        for axes, key, name in zip(row, ("skewness", "kurtosis"), ("skewness", "excess kurtosis"), strict=False):
            values = [[v for v in layer[key] if v is not None] for layer in layers]
            band = [layer["known"][KINDS[1]][key] or {} for layer in layers]
            for place, known in zip(places, band, strict=True):
                axes.fill_between(
                    [place - 0.5, place + 0.5], known.get("5", np.nan), known.get("95", np.nan), color="0.85", lw=0
                )
            axes.boxplot(
                values,
                positions=list(places),
                widths=0.55,
                whis=(5, 95),
                showfliers=False,
                boxprops={"color": BLUE},
                medianprops={"color": ORANGE, "lw": 1.8},
                whiskerprops={"color": BLUE},
                capprops={"color": BLUE},
            )
            axes.axhline(0, color="0.4", lw=0.8)
            if key == "kurtosis":
                axes.set_yscale("symlog", linthresh=1)
                axes.yaxis.set_major_locator(FixedLocator([-2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50, 100]))
                axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.set_title(f"{point}: {name}", fontsize=10)
        shares = row[2]
        colors = dict(zip(KINDS, (ORANGE, "0.45", BLUE, GREEN), strict=True))
        for kind, color in colors.items():
            line = [layer["rejected"][kind]["plain"] for layer in layers]
            points_ = [np.nan if share is None else 100 * share for share in line]
            shares.plot(places, points_, ".-" if kind == "maps" else ".--", color=color, label=kind)
        corrected = [layer["rejected"]["maps"]["corrected"] for layer in layers]
        shares.plot(
            places,
            [np.nan if share is None else 100 * share for share in corrected],
            ".:",
            color=ORANGE,
            label="maps, corrected for many tests",
        )
        shares.axhline(100 * LEVEL, color="0.4", lw=0.8)
        shares.set(ylim=(-4, 104))
        shares.set_title(f"{point}: channels rejected at 5 %, %", fontsize=10)
        for axes in row:
            axes.set_xlim(-0.6, len(layers) - 0.4)
            axes.set_xticks(list(places), [layer["label"] for layer in layers], rotation=90 if most > 15 else 0)
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("stage.block", fontsize=9)
    handles, names = grid[0][2].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(
        f"Shape of the channels' values, {result['sample']} values of each from {result['pictures']} pictures; "
        "boxes: middle half and 5 to 95 % of the channels, grey: 5 to 95 % of normal maps as smooth",
        fontsize=10.5,
    )
    return figure


def _share(layers: Sequence[Mapping[str, Any]], kind: str, which: str = "plain") -> str:
    """Rejected channels of some layers together, in per cent."""
    number = "tested" if kind == "maps" else "channels"
    pairs = [(layer["rejected"][kind][which], layer[number]) for layer in layers]
    known = [(share, channels) for share, channels in pairs if share is not None]
    return f"{100 * sum(s * c for s, c in known) / sum(c for _, c in known):.0f}" if known else "-"


def finding(result: Mapping[str, Any]) -> str:
    """What the figures show, in a sentence."""
    said = []
    for point in POINTS:
        layers = [layer for layer in result["layers"] if layer["point"] == point]
        stages = [
            [one for one in layers if one["stage"] == stage] for stage in sorted({one["stage"] for one in layers})
        ]
        if stages:
            of_maps, of_known = (", ".join(_share(stage, kind) for stage in stages) for kind in KINDS[:2])
            said.append(f"{point} {of_maps} % ({of_known} % of normal maps as smooth)")
    return (
        f"With {result['sample']} values of each channel from {result['pictures']} pictures, normality is rejected "
        f"at 5 % for these shares of the channels, stage by stage: {'; '.join(said)}."
    )


def to_markdown(result: Mapping[str, Any]) -> str:
    """A table by stage and point, a sentence of what the figures show, and one of what they cannot show."""
    lines = [
        "| values | stage | channels tested | skewness, median | excess kurtosis, median "
        "| rejected at 5 %, % | corrected | normal, as smooth | normal | exponential |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for point, stage in dict.fromkeys((layer["point"], layer["stage"]) for layer in result["layers"]):
        layers = [layer for layer in result["layers"] if (layer["point"], layer["stage"]) == (point, stage)]
        medians = []
        for key in ("skewness", "kurtosis"):
            values = [v for layer in layers for v in layer[key] if v is not None]
            medians.append(f"{np.median(values):.2f}" if values else "-")
        tested, channels = (sum(layer[key] for layer in layers) for key in ("tested", "channels"))
        shares = [_share(layers, "maps"), _share(layers, "maps", "corrected"), *(_share(layers, k) for k in KINDS[1:])]
        lines.append(f"| {' | '.join([point, str(stage), f'{tested} of {channels}', *medians, *shares])} |")
    left_out = sorted({layer["stage"] for layer in result["left_out"]})
    small = (
        f", nor anything of stage {' and '.join(map(str, left_out))}, whose maps have fewer than {MIN_POSITIONS} values"
        if left_out
        else ""
    )
    return "\n".join(
        [
            *lines,
            "",
            finding(result),
            "This does not show whether an attention that reads more than mean and deviation would be more accurate: a "
            "share depends on the size of the sample, and the test sees skewness and kurtosis only"
            f"{small}.",
            "",
        ]
    )
