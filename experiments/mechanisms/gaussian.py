"""Are channels normally distributed, and do those that are not profit less from the std in their gate?

Give run directories of `patnet train`; analysed ones are not analysed again. Each map is standardised by its own mean
and std, which are what the Gaussian gate reads. A channel's distance from normal is the mean distance of the quantiles
(1 to 99 %) of these values from those of smooth normal fields: normal fields with the spectrum of the channel,
standardised alike. The profit of a channel is what the loss rises by when the gate reads, in place of its std, the mean
of that std over the images; of a layer, at most 24 channels are measured.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor, nn

from patnet import InputError, load
from patnet.bench import markdown_table
from patnet.cli import main
from patnet.data import eval_transform
from patnet.files import atomic_write, write_text
from patnet.inspection.hooks import Hook, find_layers, hooked
from patnet.nn import MLP, GaussianChannelAttention, PAT_ch, spatial_mean_std
from patnet.train import TrainConfig, open_run_data
from patnet.train.config import PositiveInt
from patnet.train.figures import COLORS

NAME = "experiments/mechanisms/gaussian.py"
SUMMARY = (__doc__ or "").partition("\n")[0]
EXAMPLES = """examples:
  python experiments/mechanisms/gaussian.py runs/gelu runs/relu"""
EXTRA = ("train", ("jsonargparse", "matplotlib", "scipy"))
POSITIONAL = {"runs": "*"}
POINTS = ("untouched", "before activation", "after activation")
MIN_POSITIONS = 16  # standardising leaves little of the shape of smaller maps
MOST_CHANNELS = 24  # of a layer
SHARES = np.linspace(0.01, 0.99, 99)


def _quantiles(maps: Tensor) -> np.ndarray:
    """Quantiles of the standardised values of each channel of `(N, C, H, W)`, `(C, 99)`; constant maps do not count."""
    mean, std = spatial_mean_std(maps)
    z = ((maps - mean[..., None, None]) / std[..., None, None]).masked_fill(std[..., None, None] < 1e-5, torch.nan)
    values = z.transpose(0, 1).flatten(1).numpy()
    return np.nanquantile(values, SHARES, axis=1).T


def _smooth(maps: Tensor, seed: int) -> Tensor:
    """Normal fields of the shape of `maps`, each channel with the mean spectrum of its standardised maps."""
    mean, std = spatial_mean_std(maps)
    z = (maps - mean[..., None, None]) / std[..., None, None]
    power = torch.fft.fft2(z).abs().square().mean(0)
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed))
    return torch.fft.ifft2(torch.fft.fft2(noise) * power.sqrt()).real


def distances(maps: Tensor) -> dict[str, list[float]]:
    """Distance of each channel from smooth normal fields, and, for comparison, that of other such fields."""
    reference = _quantiles(_smooth(maps, 0))
    other = _quantiles(_smooth(maps, 1))
    return {
        name: np.abs(found - reference).mean(1).round(5).tolist()
        for name, found in (("network", _quantiles(maps)), ("smooth normal", other))
    }


@torch.inference_mode()
def profits(model: nn.Module, block: PAT_ch, maps: Tensor, images: Tensor, labels: Tensor) -> list[float | None]:
    """Rise of the mean loss if a channel's std is replaced in the gate, by channel of `maps`, the untouched ones.

    None for all but `MOST_CHANNELS` evenly spaced ones, because each takes a pass over the images.
    """
    attn: Any = block.attn
    std = spatial_mean_std(maps)[1]
    change, losses = torch.zeros(len(images), maps.shape[1]), {}
    handle = attn.norm.register_forward_pre_hook(lambda _, args: args[0] + change[:, :, None, None])
    before = F.cross_entropy(model(images).double(), labels).item()
    for channel in np.linspace(0, maps.shape[1] - 1, min(MOST_CHANNELS, maps.shape[1])).astype(int).tolist():
        column = std[:, channel]
        change = (column.mean() - column)[:, None] * attn.mix.weight[:, channel, 0, 1]
        losses[channel] = F.cross_entropy(model(images).double(), labels).item() - before
    handle.remove()
    return [losses.get(channel) for channel in range(maps.shape[1])]


def analyse(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """All numbers of a network in evaluation mode, of images `(N, in_chans, H, W)` with their labels.

    Raises:
        InputError: If the network has no Gaussian gate, or its maps are too small.
    """
    blocks = [b for b in find_layers(model, PAT_ch) if isinstance(b.module.attn, GaussianChannelAttention)]
    places = [(POINTS[0], layer) for layer in blocks]
    places += [(point, layer) for point in POINTS[1:] for layer in find_layers(model, MLP)]
    taken: list[list[Tensor]] = [[] for _ in places]
    hooks = []
    for (point, layer), into in zip(places, taken, strict=True):
        if point == POINTS[0]:
            start = layer.module.split[0]
            hooks.append(Hook(layer.module, "input", lambda x, into=into, start=start: into.append(x[:, start:])))
        else:
            hooks.append(Hook(layer.module.act, "input" if point == POINTS[1] else "output", into.append))
    with hooked(model, hooks):
        logits = model(images)
    layers = []
    for (point, layer), (maps,) in zip(places, taken, strict=True):
        if maps.shape[2] * maps.shape[3] < MIN_POSITIONS:
            continue
        found: dict[str, Any] = {"point": point, "label": layer.label, "stage": layer.stage, **distances(maps)}
        if point == POINTS[0]:
            found["profit"] = profits(model, layer.module, maps, images, labels)
        layers.append(found)
    if not any(layer["point"] == POINTS[0] for layer in layers):
        raise InputError(f"the network has no Gaussian gate with maps of {MIN_POSITIONS} positions or more")
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    activation = type(next(m.act for m in model.modules() if isinstance(m, MLP))).__name__
    return {"images": len(images), "accuracy": accuracy, "activation": activation, "layers": layers}


def _known(layer: dict[str, Any]) -> np.ndarray:
    """Distance and profit of the channels that have both, `(2, channels)`."""
    both = np.array([layer["network"], layer["profit"]], float)
    return both[:, np.isfinite(both).all(0)]


def correlation(layers: list[dict[str, Any]], seed: int = 0) -> tuple[float, float, float]:
    """Rank correlation of distance and profit within the layers, with a 95 % bootstrap interval over channels."""
    pairs = [_known(x) for x in layers if x["point"] == POINTS[0]]

    def of(chosen: list[np.ndarray]) -> float:
        ranks = [(rankdata(pair, axis=1) - (pair.shape[1] + 1) / 2) / pair.shape[1] for pair in chosen]
        return float(np.corrcoef(np.concatenate(ranks, axis=1))[0, 1])

    rng = np.random.default_rng(seed)
    found = [of([pair[:, rng.integers(0, pair.shape[1], pair.shape[1])] for pair in pairs]) for _ in range(1000)]
    return of(pairs), *np.quantile(found, (0.025, 0.975)).tolist()


def _verdict(low: float, high: float) -> str:
    if high < 0:
        return "profit less from the std"
    if low > 0:
        return "profit more from the std, not less"
    small = max(-low, high) < 0.1
    return f"profit {'as much' if small else 'neither more nor less, as far as these numbers tell,'} from the std"


def draw(results: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    """Distance from normal by layer, beside smooth normal fields; and profit against distance."""
    first = Figure(figsize=(10.5, 2.7 * len(results) + 0.8), layout="constrained")
    second = Figure(figsize=(4.6 * len(results) + 0.5, 4.2), layout="constrained")
    grid = first.subplots(len(results), len(POINTS), squeeze=False, sharey=True)
    for row, (name, result) in enumerate(results.items()):
        for axes, point in zip(grid[row], POINTS, strict=True):
            layers = [layer for layer in result["layers"] if layer["point"] == point]
            for shift, source, color in ((-0.12, "network", COLORS[0]), (0.12, "smooth normal", "0.5")):
                low, middle, high = np.array([np.nanquantile(x[source], (0.05, 0.5, 0.95)) for x in layers]).T
                places = np.arange(len(layers)) + shift
                bars = (middle - low, high - middle)
                axes.errorbar(places, middle, bars, fmt="o", ms=4, capsize=2, color=color, label=source)
            axes.set_xticks(range(len(layers)), [layer["label"] for layer in layers], fontsize=7)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
            axes.set_title(f"{name} ({result['activation']}): {point}", fontsize=9)
        grid[row][0].set_ylabel("distance from normal, std", fontsize=9)
        axes = second.add_subplot(1, len(results), row + 1)
        for stage in sorted({x["stage"] for x in result["layers"] if "profit" in x}):
            layers = [x for x in result["layers"] if x["stage"] == stage and "profit" in x]
            points = np.concatenate([_known(x) for x in layers], axis=1)
            axes.plot(points[0], 1e3 * points[1], ".", color=COLORS[stage - 1], label=f"stage {stage}")
        value, low, high = correlation(result["layers"])
        axes.set_title(f"{name}: rank correlation {value:+.2f}\n(95 % CI {low:+.2f} to {high:+.2f})", fontsize=10)
        axes.set(xlabel="distance from normal, std", ylabel="rise of the loss without the std, 0.001")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.axhline(0, color="0.5", lw=0.8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    grid[-1][1].set_xlabel("stage.block; median and 5 to 95 % of the channels", fontsize=9)
    grid[0][0].legend(fontsize=8, frameon=False)
    return {"gaussian-normality": first, "gaussian-profit": second}


def publish(folder: Path, page: Path) -> str:
    """Write the page and its figures from the results in `folder`; gives the answer."""
    results = {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.json"))}
    answer, rows, figures = "Not measured: no network has been analysed yet.", [], []
    sentences = []
    for name, result in results.items():
        medians = {}
        for point in POINTS:
            for source in ("network", "smooth normal"):
                values = [v for x in result["layers"] if x["point"] == point for v in x[source]]
                medians[point, source] = np.nanmedian(values)
            rows.append([name, point, *(f"{medians[point, s]:.3f}" for s in ("network", "smooth normal"))])
        value, low, high = correlation(result["layers"])
        total = [p for x in result["layers"] for p in x.get("profit", []) if p is not None]
        few = ", below the 90 % that this page asks for" if result["accuracy"] < 0.9 else ""
        times = [f"{medians[p, 'network'] / medians[p, 'smooth normal']:.1f} times" for p in POINTS]
        sentences.append(
            f"In `{name}` ({result['activation']}, {100 * result['accuracy']:.1f} % of {result['images']} test images "
            f"right{few}), the untouched channels are {times[0]} as far from normal as smooth normal fields, and the "
            f"values after the activation {times[2]}. Channels that are further from normal {_verdict(low, high)}: the "
            f"rank correlation within layers of distance and rise of the loss is {value:+.2f} (95 % CI {low:+.2f} to "
            f"{high:+.2f}). Replacing a channel's std by its mean raises the loss by {np.mean(total):.5f} in the mean "
            f"of {len(total)} channels, and by at most {max(total):.4f}."
        )
    if results:
        answer = "\n\n".join(sentences)
        table = markdown_table(["network", "values", "distance, network", "distance, smooth normal"], rows, left=2)
        for name, figure in draw(results).items():
            with atomic_write(page.parent / "mechanisms" / f"{name}.png") as file:
                figure.savefig(file, dpi=110)
            figures.append(f"![{name}](mechanisms/{name}.png)")
        figures = [*figures, "", "Medians over channels:", "", *table]
    method = (__doc__ or "").partition("again. ")[2].strip()
    lines = ["# Are features normal enough for mean and std?", "", answer, ""]
    lines += [*figures, ""] if figures else []
    lines += [method, ""]
    lines += [
        "What the gates can tell apart at all is measured on [synthetic textures](mechanisms.md#distribution-probe).",
        "",
    ]
    lines += ["<!-- example: parsed only, because it needs trained runs -->", "```sh"]
    lines += ["python experiments/mechanisms/gaussian.py runs/gelu runs/relu", "```"]
    write_text(page, "\n".join(lines) + "\n")
    return answer


def run(
    runs: list[str],
    *,
    out: str = "runs/mechanisms/gaussian",
    page: str = "docs/experiments/gaussian.md",
    images: PositiveInt = 500,
) -> int:
    """Analyse networks, and write the page.

    Args:
        runs: Run directories of networks to analyse.
        out: Folder of the numbers.
        page: Page of the answer.
        images: Test images.
    """
    for path in map(Path, runs):
        file = Path(out) / f"{path.name}.json"
        if file.exists():
            continue
        loaded = load(path)
        data = open_run_data(TrainConfig.read(path / "config.yaml"))
        split: Any = data.val if data.test is None else data.test
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:images]
        transform = eval_transform(loaded.data_config)
        pairs = [split[i] for i in order.tolist()]
        batch = torch.stack([transform(image) for image, _ in pairs])
        print(f"{path}: {len(batch)} images", file=sys.stderr, flush=True)
        result = analyse(loaded.model, batch, torch.tensor([label for _, label in pairs]))
        write_text(file, json.dumps(result) + "\n")
    print(publish(Path(out), Path(page)))
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
