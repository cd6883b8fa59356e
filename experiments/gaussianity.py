"""Are the values of a channel normally distributed? The paper's Gaussian attention keeps only their mean and std.

Each map is standardised by its own mean and std, which are what `GaussianChannelAttention` keeps of it. What is left
is the shape of the distribution, and that is compared with the normal one. The values of a test come from different
images, one from each, because the values of one map are not independent.

With enough values any test rejects normality, and with too few it rejects nothing. So every layer is tested on the same
number of values, and so are three controls of the same map size: normal maps with the spatial autocorrelation of the
network's ("smooth normal"), white normal maps, and exponential maps. They show what standardising small or smooth maps
does to the test.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter
from scipy import stats
from torch import Tensor, nn

from patnet import InputError
from patnet.bench import markdown_table
from patnet.inspection.hooks import Hook, find_layers, hooked, image_batches
from patnet.nn import MLP, PAT_ch
from patnet.train.figures import COLORS

POINTS = ("untouched", "before activation", "after activation")
SOURCES = ("network", "smooth normal", "normal", "exponential")
LEVEL = 0.05
MIN_SAMPLE = 20  # smallest sample for which the approximation of the test holds (D'Agostino and Pearson)
MIN_POSITIONS = 16  # standardising leaves little of the shape of smaller maps
BLUE, RED, GREEN = COLORS[:3]


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    """The quantiles `"5"` to `"95"` (%) of the values that are not NaN; None if all are."""
    defined = values[np.isfinite(values)]
    shares = (5, 25, 50, 75, 95)
    return dict(zip(map(str, shares), np.percentile(defined, shares).tolist(), strict=True)) if len(defined) else None


def _standardise(maps: Tensor) -> Tensor:
    """Each map minus its mean, divided by its std, `(N, C, H, W)` to `(N, C, H * W)`; NaN where a map is constant."""
    flat = maps.flatten(2)
    constant = flat.amax(2, keepdim=True) == flat.amin(2, keepdim=True)
    scaled = (flat - flat.mean(2, keepdim=True)) / flat.std(2, keepdim=True)
    return scaled.masked_fill(constant, math.nan)


class _Draws:
    """Standardised values of every channel of a layer and of the controls, one at a random position of each image."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.map_size = [0, 0]
        self.power: Any = 0.0  # (C, H, W), spectrum summed over maps; that of a single one is more peaked
        self.values: list[Tensor] = []  # each (sources, C, images)

    def add(self, x: Tensor) -> None:
        """Draw from maps `(N, C, H, W)`, if they are large enough."""
        images, channels, height, width = x.shape
        self.map_size = [height, width]
        if height * width < MIN_POSITIONS:
            return
        maps = x.cpu().double()
        noise = torch.randn(maps.shape, generator=self.generator, dtype=torch.float64)
        exponential = torch.empty_like(maps).exponential_(generator=self.generator)
        self.power = self.power + torch.fft.fft2(_standardise(maps).nan_to_num().view_as(maps)).abs().square().sum(0)
        smooth = torch.fft.ifft2(torch.fft.fft2(noise) * self.power.sqrt()).real
        position = torch.randint(height * width, (images, 1, 1), generator=self.generator).expand(-1, channels, 1)
        drawn = [_standardise(source).gather(2, position)[..., 0].T for source in (maps, smooth, noise, exponential)]
        self.values.append(torch.stack(drawn))


def _test(values: np.ndarray, sample: int) -> dict[str, np.ndarray]:
    """Skewness, excess kurtosis and p value of D'Agostino and Pearson's test of each channel, NaN if undefined.

    `values` are `(C, n)`, NaN where a map was constant; the first `sample` others are tested.
    """
    order = np.isnan(values).argsort(axis=1, kind="stable")[:, :sample]
    first = np.take_along_axis(values, order, axis=1)
    tested = ~np.isnan(first).any(axis=1)
    result = {key: np.full(len(values), np.nan) for key in ("skewness", "kurtosis", "p")}
    # All values equal although no map is constant: each map has a rare outlier, and nothing is further from normal.
    equal = tested & (first.max(axis=1, initial=-np.inf) == first.min(axis=1, initial=np.inf))
    result["p"][equal] = 0.0
    rows = tested & ~equal
    if rows.any():
        result["skewness"][rows] = stats.skew(first[rows], axis=1)
        result["kurtosis"][rows] = stats.kurtosis(first[rows], axis=1)
        result["p"][rows] = stats.normaltest(first[rows], axis=1).pvalue
    return result


def _rejected(p: np.ndarray) -> dict[str, float | None]:
    """Share of tests that reject normality at 5 %: `plain`, and with a false discovery rate of 5 % (`corrected`)."""
    p = p[~np.isnan(p)]
    if not len(p):
        return {"plain": None, "corrected": None}
    corrected = stats.false_discovery_control(p)
    return {"plain": float((p <= LEVEL).mean()), "corrected": float((corrected <= LEVEL).mean())}


def gaussianity(model: nn.Module, images: Tensor, *, sample: int = 200, seed: int = 0) -> dict[str, Any]:
    """Skewness, kurtosis and a test of normality of each channel, with the same of three controls.

    Tested are the untouched channels of each `PAT_ch`, which are the input of its channel attention, and the input and
    output of the activation of each `MLP`. The test is D'Agostino and Pearson's (1973); the correction for many tests
    is Benjamini and Hochberg's (1995), over the channels of a layer. The network is unfused, images are
    `(N, in_chans, H, W)` in random order; a test takes at most `sample` values. The seed is that of the positions and
    the controls.

    Returns:
        `layers`, each with its `point` in the network, figures of each channel (None where constant maps leave too few
        values), the share of `rejected` channels of each source, and quantiles of the `controls`; `left_out`, layers
        with maps of fewer than 16 positions. All as JSON.

    Raises:
        InputError: If there are too few images for the test, or no layer to test.
    """
    sample = min(sample, len(images))
    if sample < MIN_SAMPLE:
        raise InputError(f"{sample} values of a channel, one from each image: the test needs at least {MIN_SAMPLE}")
    layers = [(POINTS[0], layer) for layer in find_layers(model, PAT_ch)]
    layers += [(point, layer) for point in POINTS[1:] for layer in find_layers(model, MLP)]
    if not layers:
        raise InputError("the network has neither PAT_ch nor MLP of patnet.nn: there are no values to test")
    draws, hooks = [_Draws(seed + i) for i in range(len(layers))], []
    for (point, layer), drawn in zip(layers, draws, strict=True):
        if point == POINTS[0]:
            start = layer.module.split[0]
            hooks.append(Hook(layer.module, "input", lambda x, add=drawn.add, start=start: add(x[:, start:])))
        else:
            hooks.append(Hook(layer.module.act, "input" if point == POINTS[1] else "output", drawn.add))
    with hooked(model, hooks):
        for batch in image_batches(model, images[: 2 * sample]):  # twice the sample, because maps may be constant
            model(batch)
    tested, left_out = [], []
    for (point, layer), drawn in zip(layers, draws, strict=True):
        place = {"label": layer.label, "stage": layer.stage, "point": point, "map": drawn.map_size}
        if not drawn.values:
            left_out.append(place)
            continue
        values = torch.cat(drawn.values, dim=2).numpy()
        tests = {source: _test(v, sample) for source, v in zip(SOURCES, values, strict=True)}
        network = tests["network"]
        figures: dict[str, Any] = {"channels": len(network["p"]), "tested": int((~np.isnan(network["p"])).sum())}
        for key in ("skewness", "kurtosis"):
            figures[key] = [float(v) if np.isfinite(v) else None for v in network[key]]
        figures["rejected"] = {source: _rejected(test["p"]) for source, test in tests.items()}
        figures["controls"] = {
            source: {key: quantiles(tests[source][key]) for key in ("skewness", "kurtosis")} for source in SOURCES[1:]
        }
        tested.append(place | figures)
    if not tested:
        raise InputError(f"all maps have fewer than {MIN_POSITIONS} positions: give larger images")
    return {"images": len(images), "sample": sample, "seed": seed, "layers": tested, "left_out": left_out}


def measure(networks: Iterator[tuple[str, nn.Module, Tensor]]) -> dict[str, Any]:
    """The analysis of an experiment: of its first configuration."""
    name, model, images = next(networks)
    return {"configuration": name, **gaussianity(model, images)}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Skewness, excess kurtosis and share of rejected channels of every layer, a row for each point."""
    points = [point for point in POINTS if any(layer["point"] == point for layer in result["layers"])]
    figure = Figure(figsize=(8.5, 2.5 * len(points) + 0.9), layout="constrained")
    grid = figure.subplots(len(points), 3, squeeze=False)
    titles = ("skewness", "excess kurtosis", "rejected at 5 %, % of channels")
    for row, point in zip(grid, points, strict=True):
        layers = [layer for layer in result["layers"] if layer["point"] == point]
        _draw_moment(row[0], layers, "skewness")
        _draw_moment(row[1], layers, "kurtosis")
        _draw_rejected(row[2], layers)
        row[0].set_ylabel(point, fontsize=10)
        for axes, title in zip(row, titles, strict=True):
            axes.set_xlim(-0.6, len(layers) - 0.4)
            axes.set_title(title if row is grid[0] else "", fontsize=10)
            axes.set_xticks(range(len(layers)), [layer["label"] for layer in layers])
            axes.set_xlabel("stage.block" if row is grid[-1] else "", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", alpha=0.3)
    handles, names = grid[0][2].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    title = "Boxes: middle half and 5 to 95 % of the channels; grey: 5 to 95 % of the channels of smooth normal maps"
    figure.suptitle(title, fontsize=10)
    return {"moments": figure}


def _draw_moment(axes: Any, layers: Sequence[Mapping[str, Any]], key: str) -> None:
    for place, layer in enumerate(layers):
        band = layer["controls"][SOURCES[1]][key] or {"5": np.nan, "95": np.nan}
        axes.fill_between([place - 0.5, place + 0.5], band["5"], band["95"], color="0.85", lw=0)
    values = [[v for v in layer[key] if v is not None] for layer in layers]
    lines = {f"{part}props": {"color": BLUE} for part in ("box", "whisker", "cap")}
    median = {"color": RED, "lw": 1.8}
    axes.boxplot(values, positions=range(len(layers)), widths=0.55, whis=(5, 95), sym="", medianprops=median, **lines)
    axes.axhline(0, color="0.4", lw=0.8)
    if key == "kurtosis":
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_locator(FixedLocator([-2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50, 100]))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _draw_rejected(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    styles = [(SOURCES[0], "plain", ".-", RED)]
    styles += [
        (source, "plain", ".--", color) for source, color in zip(SOURCES[1:], ("0.45", BLUE, GREEN), strict=True)
    ]
    for source, which, style, color in [*styles, (SOURCES[0], "corrected", ".:", RED)]:
        percent = 100 * np.array([layer["rejected"][source][which] for layer in layers], float)  # None becomes NaN
        label = source if which == "plain" else f"{source}, {which}"
        axes.plot(range(len(layers)), percent, style, color=color, label=label)
    axes.axhline(100 * LEVEL, color="0.4", lw=0.8)
    axes.set_ylim(-4, 104)


def _share(layers: Sequence[Mapping[str, Any]], source: str, which: str = "plain") -> str:
    """Rejected channels of several layers, in %."""
    number = "tested" if source == SOURCES[0] else "channels"
    shares = np.array([layer["rejected"][source][which] for layer in layers], float)
    known = ~np.isnan(shares)
    counts = np.array([layer[number] for layer in layers])[known]
    return f"{100 * np.average(shares[known], weights=counts):.0f}" if known.any() else "-"


def _groups(result: Mapping[str, Any]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """The layers, which are in order of their points, by point and stage."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for layer in result["layers"]:
        groups.setdefault((layer["point"], layer["stage"]), []).append(layer)
    return groups


def finding(result: Mapping[str, Any]) -> str:
    """What the figures show, in one sentence."""
    groups, parts = _groups(result), []
    for point in dict.fromkeys(point for point, _ in groups):
        stages = [layers for (at, _), layers in groups.items() if at == point]
        network, smooth = (", ".join(_share(layers, source) for layers in stages) for source in SOURCES[:2])
        parts.append(f"{point} {network} % (smooth normal maps: {smooth} %)")
    return (
        f"With {result['sample']} values of each channel from {result['images']} images, normality is rejected at 5 % "
        f"for these shares of the channels, by stage: {'; '.join(parts)}."
    )


def to_markdown(result: Mapping[str, Any]) -> str:
    """A table by point and stage, and what it cannot show."""
    headings = ["values", "stage", "channels tested", "skewness, median", "excess kurtosis, median"]
    rows = []
    for (point, stage), layers in _groups(result).items():
        medians = []
        for key in ("skewness", "kurtosis"):
            values = [v for layer in layers for v in layer[key] if v is not None]
            medians.append(f"{np.median(values):.2f}" if values else "-")
        tested, channels = (sum(layer[key] for layer in layers) for key in ("tested", "channels"))
        shares = [_share(layers, SOURCES[0]), _share(layers, SOURCES[0], "corrected")]
        shares += [_share(layers, source) for source in SOURCES[1:]]
        rows.append([point, str(stage), f"{tested} of {channels}", *medians, *shares])
    small = sorted({layer["stage"] for layer in result["left_out"]})
    note = f" Maps of stage {' and '.join(map(str, small))} are too small to be tested." if small else ""
    return (
        f"Of {result['configuration']}, first seed. Shares of channels in which normality is rejected at 5 %, in %; "
        "corrected: with a false discovery rate of 5 %; the last three columns are the controls.\n\n"
        + "\n".join(markdown_table([*headings, "rejected", "corrected", *SOURCES[1:]], rows))
        + "\n\nThis does not show whether an attention that reads more than mean and std would be more accurate. A "
        f"share depends on the sample size, and the test sees only skewness and kurtosis.{note}"
    )
