"""The figure of an experiment: latency, differences of accuracy with their intervals, and accuracy against speed."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from patnet.train.figures import COLORS

GREY = "0.55"
BLUE = COLORS[0]


def draw_experiment(results: Mapping[str, Any]) -> Figure:
    """Latency relative to the baseline and, if there are trained runs, their differences and accuracy against speed."""
    names = list(results["costs"]["networks"])
    trained = bool(results["accuracies"])
    heights = [1.3 + 0.3 * max(len(names), 4 if trained else 0)]
    if trained:
        heights.append(0.9 + 0.27 * max(len(results["differences"]), 1))
    figure = Figure(figsize=(8.5, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2 if trained else 1, height_ratios=heights)
    _draw_latency(figure.add_subplot(grid[0, 0]), results, names)
    if trained:
        _draw_tradeoff(figure.add_subplot(grid[0, 1]), results)
        _draw_differences(figure.add_subplot(grid[1, :]), results)
    return figure


def _name_rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(alpha=0.3, axis="x")


def _draw_latency(axes: Any, results: Mapping[str, Any], names: list[str]) -> None:
    rows = results["costs"]["rows"]
    settings = list(dict.fromkeys((r["size_px"], r["batch"]) for r in rows))
    for i, (size, batch) in enumerate(settings):
        ratios = {r["configuration"]: r["ratio"] for r in rows if (r["size_px"], r["batch"]) == (size, batch)}
        places = [y + 0.6 * ((i + 0.5) / len(settings) - 0.5) for y in range(len(names))]
        label = f"{size} px, batch {batch}"
        axes.plot([ratios[name] for name in names], places, "o", ms=5, color=COLORS[i], label=label)
    axes.axvline(1, color=GREY, lw=1)
    axes.set_xscale("log")
    axes.minorticks_off()
    low, high = 0.9 * min(r["ratio"] for r in rows), 1.1 * max(r["ratio"] for r in rows)
    steps = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if high > 4 else (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 4)
    ticks = [tick for tick in steps if low <= tick <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlim(low, high)
    axes.set_title(f"Latency relative to {results['baseline']}\n(below 1 is faster)", fontsize=10)
    below = (0.5, -0.45 / axes.figure.get_figheight())
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=below, ncols=2)
    _name_rows(axes, names)


def _draw_differences(axes: Any, results: Mapping[str, Any]) -> None:
    rows = results["differences"]
    for y, row in enumerate(rows):
        axes.plot([100 * d for d in row["pairs"]], [y + 0.2] * len(row["pairs"]), ".", color=GREY, ms=5)
        if row["low"] is not None:
            axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=BLUE, lw=2)
        axes.plot(100 * row["mean"], y, "o", color=BLUE, ms=6)
    axes.axvline(0, color=GREY, lw=1)
    shown = "mean with 95 % CI, and each seed" if len(results["seeds"]) > 1 else "one seed, no interval"
    axes.set_title(f"Difference of accuracy ({shown})", fontsize=10)
    axes.set_xlabel("percentage points", fontsize=9)
    invalid = {run["configuration"] for run in results["runs"] if run["unmoved"]}
    names = [f"{row['configuration']}{' (invalid)' * (row['configuration'] in invalid)}" for row in rows]
    _name_rows(axes, [f"{name} - {row['baseline']}" for name, row in zip(names, rows, strict=True)])


def _draw_tradeoff(axes: Any, results: Mapping[str, Any]) -> None:
    rows = results["costs"]["rows"]
    setting = rows[0]["size_px"], rows[0]["batch"]
    speeds = {r["configuration"]: r["images_per_s"] for r in rows if (r["size_px"], r["batch"]) == setting}
    for i, row in enumerate(results["accuracies"]):
        speed, color = speeds[row["configuration"]], COLORS[i % len(COLORS)]
        if row["low"] is not None:
            axes.plot([speed] * 2, [100 * row["low"], 100 * row["high"]], color=color, lw=1.2, alpha=0.6)
        axes.plot(speed, 100 * row["mean"], "osD^vP*X"[i % 8], color=color, label=row["configuration"])
    axes.set_title("Accuracy against speed", fontsize=10)
    axes.set_xlabel(f"images/s, {setting[0]} px, batch {setting[1]}", fontsize=9)
    axes.set_ylabel(f"top-1, %, {results['split']}", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
