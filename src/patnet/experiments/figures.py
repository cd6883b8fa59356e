"""The picture of an experiment: differences with their intervals, and cost against accuracy."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

__all__ = ["draw_experiment"]

BLUE, ORANGE, GREY = "#2a6f97", "#d1495b", "0.55"


def draw_experiment(results: Mapping[str, Any]) -> Figure:
    """Time over the baseline's at each size; and, of what was trained, differences and cost against accuracy."""
    names = [n for n in results["configurations"] if n in results["costs"]["networks"]]
    trained = bool(results["accuracies"])
    lines = max(len(names), len(results["differences"]))
    figure = Figure(figsize=(15 if trained else 7, max(3.6, 1.6 + 0.34 * lines)), layout="constrained")
    panels = figure.subplots(1, 3 if trained else 1, squeeze=False)[0]
    _draw_costs(panels[0], results, names)
    if trained:
        _draw_differences(panels[1], results)
        _draw_tradeoff(panels[2], results)
    figure.suptitle(f"{results['experiment']}, against {results['baseline']}", fontsize=11)
    return figure


def _name_rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(alpha=0.3, axis="x")


def _draw_costs(axes: Any, results: Mapping[str, Any], names: list[str]) -> None:
    rows = results["costs"]["rows"]
    settings = list(dict.fromkeys((r["size_px"], r["batch"]) for r in rows))
    for i, (size, batch) in enumerate(settings):
        chosen = {r["configuration"]: r for r in rows if (r["size_px"], r["batch"]) == (size, batch)}
        shift = 0.6 * ((i + 0.5) / len(settings) - 0.5)
        axes.plot(
            [chosen[name]["ratio"] for name in names],
            [y + shift for y in range(len(names))],
            "o",
            ms=5,
            color=f"C{i}",
            label=f"{size} px, batch {batch}",
        )
    axes.axvline(1, color=GREY, lw=1)
    axes.set_xscale("log")
    axes.minorticks_off()
    ends = 0.7 * min(r["ratio"] for r in rows), 1.5 * max(r["ratio"] for r in rows)
    ticks = [t for t in (0.125, 0.25, 0.5, 0.7, 1, 1.5, 2, 4, 8, 16, 32, 64) if ends[0] <= t <= ends[1]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set(title="Time over the baseline's", xlabel="times, below 1 is faster")
    below = 0.45 / (axes.figure.get_figheight() - 1.4)  # as much as the label takes, in heights of the axes
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -below), ncols=2)
    _name_rows(axes, names)


def _draw_differences(axes: Any, results: Mapping[str, Any]) -> None:
    rows = results["differences"]
    for y, row in enumerate(rows):
        axes.plot([100 * d for d in row["pairs"]], [y + 0.18] * len(row["pairs"]), ".", color=GREY, ms=5)
        if row["low"] is not None:
            axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=BLUE, lw=2)
        axes.plot(100 * row["mean"], y, "o", color=BLUE, ms=6)
    axes.axvline(0, color=GREY, lw=1)
    n = len(results["seeds"])
    shown = "mean, 95 % interval and each seed" if n > 1 else "one seed, no interval"
    axes.set(title="Differences", xlabel=f"accuracy, points: {shown}")
    _name_rows(axes, [f"{row['configuration']} less {row['against']}" for row in rows])


def _name_points(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names to the right of the axes, as high as their points, or as near to that as leaves room for each."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    names = sorted(points, key=lambda name: points[name][::-1])
    gap = min(0.07, 1 / len(names))
    places: list[float] = []
    for i, name in enumerate(names):
        wanted = min((points[name][1] - low) / (high - low), 1 - gap * (len(names) - 1 - i))
        places.append(max(wanted, places[-1] + gap) if places else wanted)
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            name,
            points[name],
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 4},
        )


def _draw_tradeoff(axes: Any, results: Mapping[str, Any]) -> None:
    first = results["costs"]["rows"][0]
    rows = [r for r in results["costs"]["rows"] if (r["size_px"], r["batch"]) == (first["size_px"], first["batch"])]
    speeds = {r["configuration"]: r["images_per_s"] for r in rows}
    for row in results["accuracies"]:
        name = row["configuration"]
        color = ORANGE if name == results["baseline"] else BLUE
        if row["low"] is not None:
            axes.plot([speeds[name]] * 2, [100 * row["low"], 100 * row["high"]], color=color, lw=1, alpha=0.5)
        axes.plot(speeds[name], 100 * row["mean"], "o", color=color)
    _name_points(
        axes, {row["configuration"]: (speeds[row["configuration"]], 100 * row["mean"]) for row in results["accuracies"]}
    )
    axes.set(
        title="Cost against accuracy",
        xlabel=f"images/s, {first['size_px']} px, batch {first['batch']}",
        ylabel=f"accuracy, %, {results['split']}",
    )
    axes.grid(alpha=0.3)
