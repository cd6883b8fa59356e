"""Are channels normally distributed, and do those that are not profit less from the std in their gate?

Each map is standardised by its own mean and std, which are what the Gaussian gate reads. A channel's distance from
normal is the mean distance of the quantiles (1 to 99 %) of these values from those of smooth normal fields, which
have the spectrum of the channel and are standardised alike. How much a channel profits from the std is the rise of the
loss when the gate gets the std averaged over all images instead of that of the image; it is measured of at most 24
channels of each layer. Intervals are of a bootstrap over the channels of one network.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fit import open_images
from protocol import read_protocol

from patnet import InputError, load
from patnet.bench import markdown_table
from patnet.cli import main
from patnet.files import save_figure, write_text
from patnet.inspection.hooks import Hook, find_layers, hooked
from patnet.nn import MLP, GaussianChannelAttention, PAT_ch, spatial_mean_std
from patnet.train.config import PositiveInt
from patnet.train.figures import COLORS

NAME = "experiments/mechanisms/gaussian.py"
SUMMARY = (__doc__ or "").partition("\n")[0]
EXAMPLES = """examples:
  python experiments/mechanisms/gaussian.py              after experiments/run.py train --only base relu
  python experiments/mechanisms/gaussian.py FOLDER ...   other networks for Fashion-MNIST"""
EXTRA = ("train", ("jsonargparse", "matplotlib", "scipy"))
POSITIONAL = {"networks": "*"}
POINTS = ("untouched", "before activation", "after activation")
SOURCES = ("network", "smooth normal")
MIN_POSITIONS = 16  # standardising leaves little of the shape of smaller maps
MOST_CHANNELS = 24  # of a layer
SHARES = np.linspace(0.01, 0.99, 99)


def standardised(maps: Tensor) -> Tensor:
    """Maps `(N, C, H, W)` by their own mean and std; NaN where they are constant."""
    mean, std = (value[..., None, None] for value in spatial_mean_std(maps))
    return ((maps - mean) / std).masked_fill(std < 1e-5, torch.nan)


def distances(maps: Tensor) -> dict[str, list[float]]:
    """Distance of each channel from smooth normal fields, and, for comparison, that of other such fields."""
    power = torch.fft.fft2(standardised(maps).nan_to_num()).abs().square().mean(0)
    quantiles = []
    for seed in (None, 0, 1):
        if seed is not None:
            noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed))
            maps = torch.fft.ifft2(torch.fft.fft2(noise) * power.sqrt()).real
        quantiles.append(np.nanquantile(standardised(maps).transpose(0, 1).flatten(1).numpy(), SHARES, axis=1).T)
    network, reference, other = quantiles
    return {name: np.abs(q - reference).mean(1).tolist() for name, q in zip(SOURCES, (network, other), strict=True)}


def profits(model: nn.Module, block: PAT_ch, maps: Tensor, images: Tensor, labels: Tensor) -> list[float]:
    """Rise of the mean loss if a channel's std is replaced in the gate, by channel of `maps`, the untouched ones.

    NaN for all but `MOST_CHANNELS` evenly spaced ones, because each takes a pass over the images.
    """
    attn: Any = block.attn
    std = spatial_mean_std(maps)[1]
    change, found = torch.zeros(len(images), maps.shape[1]), [torch.nan] * maps.shape[1]
    handle = attn.norm.register_forward_pre_hook(lambda _, args: args[0] + change[:, :, None, None])
    before = F.cross_entropy(model(images).double(), labels).item()
    for channel in np.linspace(0, maps.shape[1] - 1, min(MOST_CHANNELS, maps.shape[1])).astype(int).tolist():
        column = std[:, channel]
        change = (column.mean() - column)[:, None] * attn.mix.weight[:, channel, 0, 1]
        found[channel] = F.cross_entropy(model(images).double(), labels).item() - before
    handle.remove()
    return found


@torch.inference_mode()
def analyse(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """All numbers of a network in evaluation mode, of images `(N, in_chans, H, W)` with their labels.

    Raises:
        InputError: If the network has no Gaussian gate, or its maps are too small.
    """
    blocks = [b for b in find_layers(model, PAT_ch) if isinstance(b.module.attn, GaussianChannelAttention)]
    places = [(POINTS[0], layer, layer.module.attn, "input") for layer in blocks]
    for point, side in zip(POINTS[1:], ("input", "output"), strict=True):
        places += [(point, layer, layer.module.act, side) for layer in find_layers(model, MLP)]
    taken: list[list[Tensor]] = [[] for _ in places]
    hooks = [Hook(*place[2:], into.append) for place, into in zip(places, taken, strict=True)]
    with hooked(model, hooks):
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    layers = []
    for (point, layer, *_), (maps,) in zip(places, taken, strict=True):
        if maps[0, 0].numel() >= MIN_POSITIONS:
            found: dict[str, Any] = {"point": point, "label": layer.label, "stage": layer.stage, **distances(maps)}
            if point == POINTS[0]:
                found["profit"] = profits(model, layer.module, maps, images, labels)
            layers.append(found)
    if not any(layer["point"] == POINTS[0] for layer in layers):
        raise InputError(f"the network has no Gaussian gate with maps of {MIN_POSITIONS} positions or more")
    activation = type(next(m.act for m in model.modules() if isinstance(m, MLP))).__name__
    return {"images": len(images), "accuracy": accuracy, "activation": activation, "layers": layers}


def measured(layers: list[dict[str, Any]]) -> list[np.ndarray]:
    """Distance and profit of the channels that have both, `(2, channels)`, by layer."""
    pairs = [np.array([layer["network"], layer["profit"]]) for layer in layers if "profit" in layer]
    return [pair[:, np.isfinite(pair).all(0)] for pair in pairs]


def correlation(layers: list[dict[str, Any]], seed: int = 0) -> tuple[float, float, float]:
    """Rank correlation of distance and profit within the layers, with a 95 % bootstrap interval over channels."""
    pairs = measured(layers)

    def of(chosen: list[np.ndarray]) -> float:
        ranks = [(rankdata(pair, axis=1) - (pair.shape[1] + 1) / 2) / pair.shape[1] for pair in chosen]
        return float(np.corrcoef(np.concatenate(ranks, axis=1))[0, 1])

    rng = np.random.default_rng(seed)
    found = [of([pair[:, rng.integers(0, pair.shape[1], pair.shape[1])] for pair in pairs]) for _ in range(1000)]
    return of(pairs), *np.quantile(found, (0.025, 0.975)).tolist()


def draw(results: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    """Distance from normal by layer, beside smooth normal fields; and profit against distance."""
    first = Figure(figsize=(10.5, 2.7 * len(results) + 0.8), layout="constrained")
    second = Figure(figsize=(4.6 * len(results) + 0.5, 4.2), layout="constrained")
    grid = first.subplots(len(results), len(POINTS), squeeze=False, sharey=True)
    panels = second.subplots(1, len(results), squeeze=False)[0]
    for row, panel, (name, result) in zip(grid, panels, results.items(), strict=True):
        for axes, point in zip(row, POINTS, strict=True):
            layers = [layer for layer in result["layers"] if layer["point"] == point]
            for shift, source, color in zip((-0.12, 0.12), SOURCES, (COLORS[0], "0.5"), strict=True):
                low, middle, high = np.array([np.nanquantile(x[source], (0.05, 0.5, 0.95)) for x in layers]).T
                bars = (middle - low, high - middle)
                style = {"ms": 4, "capsize": 2, "color": color, "label": source}
                axes.errorbar(np.arange(len(layers)) + shift, middle, bars, fmt="o", **style)
            axes.set_xticks(range(len(layers)), [layer["label"] for layer in layers], fontsize=7)
            axes.set_yscale("log")
            axes.set_title(f"{name} ({result['activation']}): {point}", fontsize=9)
        row[0].set_ylabel("distance from normal, std", fontsize=9)
        gated = [layer for layer in result["layers"] if "profit" in layer]
        for stage in sorted({layer["stage"] for layer in gated}):
            points = np.concatenate(measured([layer for layer in gated if layer["stage"] == stage]), axis=1)
            panel.plot(points[0], 1e3 * points[1], ".", color=COLORS[stage - 1], label=f"stage {stage}")
        value, low, high = correlation(gated)
        panel.set_title(f"{name}: rank correlation {value:+.2f}\n(95 % CI {low:+.2f} to {high:+.2f})", fontsize=10)
        panel.set(xlabel="distance from normal, std", ylabel="rise of the loss without the std, 0.001")
        panel.set_yscale("symlog", linthresh=0.1)
        panel.axhline(0, color="0.5", lw=0.8)
        panel.legend(fontsize=8, frameon=False)
    for axes in [*grid.flat, *panels]:
        axes.grid(alpha=0.3)
    grid[-1][1].set_xlabel("stage.block; median and 5 to 95 % of the channels", fontsize=9)
    grid[0][0].legend(fontsize=8, frameon=False)
    return {"gaussian-normality": first, "gaussian-profit": second}


def publish(results: dict[str, dict[str, Any]], page: Path) -> str:
    """Write the page and its figures; gives the answer."""
    rows: list[list[str]] = []
    medians, correlations, rises = {}, {}, {}
    for name, result in results.items():
        layers = result["layers"]
        medians[name] = [
            float(np.nanmedian([v for x in layers if x["point"] == point for v in x[source]]))
            for point, source in [*((point, SOURCES[0]) for point in POINTS), (POINTS[0], SOURCES[1])]
        ]
        correlations[name] = correlation(layers)
        rises[name] = np.concatenate([pair[1] for pair in measured(layers)])
        value, low, high = correlations[name]
        cells = [f"{name} ({result['activation']})", f"{100 * result['accuracy']:.1f}"]
        cells += [*(f"{median:.3f}" for median in medians[name]), f"{value:+.2f} ({low:+.2f} to {high:+.2f})"]
        rows.append([*cells, f"{rises[name].mean():.5f}", f"{rises[name].max():.4f}"])
    far = min(untouched / smooth for untouched, *_, smooth in medians.values())
    less = "profit less" if all(high < 0 for *_, high in correlations.values()) else "show no sign of profiting less"
    most = max(float(rise.max()) for rise in rises.values())
    distances = ", ".join(f"{median[0]:.3f} std (`{name}`)" for name, median in medians.items())
    ranks = ", ".join(f"{v:+.2f} (95 % CI {low:+.2f} to {high:+.2f})" for v, low, high in correlations.values())
    answer = (
        f"The values of the untouched channels are {'not' if far > 2 else 'about'} normal: in the median of the "
        f"channels they are {distances} from it, at least {far:.0f} times as far as smooth normal fields. Channels "
        f"that are further from normal {less} from the std: the rank correlation within layers of distance and rise of "
        f"the loss is {ranks}. The std of a single channel {'hardly matters' if most < 0.01 else 'matters'} to these "
        f"networks: without it the loss rises by at most {most:.4f}."
    )
    figures = []
    for name, figure in draw(results).items():
        save_figure(figure, page.parent / "mechanisms" / f"{name}.png", dpi=110)
        figures.append(f"![{name}](mechanisms/{name}.png)")
    headings = ["network", "top-1, %", *(f"distance, {point}" for point in POINTS), "distance, smooth normal"]
    table = markdown_table([*headings, "rank correlation", "rise of the loss, mean", "largest rise"], rows)
    method = (__doc__ or "").partition("\n\n")[2].strip()
    images = next(iter(results.values()))["images"]
    parts = ["# Are features normal enough for mean and std?", answer, *figures]
    parts += [f"Of {images} test images; distances are medians over the channels, in std:", "\n".join(table), method]
    parts += ["[Synthetic textures](mechanisms.md#distribution-probe) show what the gates can tell apart at all."]
    parts += [f"`python {NAME}` writes this page."]
    write_text(page, "\n\n".join(parts) + "\n")
    return answer


def run(
    networks: list[str],
    *,
    page: str = "docs/experiments/gaussian.md",
    images: PositiveInt = 500,
    data_root: str | None = None,
) -> int:
    """Analyse networks for Fashion-MNIST, and write the page.

    Args:
        networks: Directories of checkpoints; those of seed 0 of base and relu by default.
        page: Page of the answer.
        images: Test images.
        data_root: Folder of the four IDX files of Fashion-MNIST.
    """
    folders = networks or [f"runs/experiments/cpu/{name}/seed-0" for name in ("base", "relu")]
    _, test = open_images(read_protocol().data, data_root, 0.0, "cpu")
    chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[:images]
    results = {}
    for folder in folders:
        print(f"{folder}: {len(chosen)} images", file=sys.stderr, flush=True)
        loaded = load(Path(folder))
        config = loaded.data_config
        if config["input_size"][0] != 1:
            raise InputError(f"{folder}: takes colour images, those of Fashion-MNIST are grey; train with --in-chans 1")
        pixels, labels = test.batch(chosen, config["input_size"][-1])
        pixels = (pixels * test.std + test.mean - config["mean"][0]) / config["std"][0]
        results["/".join(Path(folder).resolve().parts[-2:])] = analyse(loaded.model, pixels, labels)
    print(publish(results, Path(page)))
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
