"""The figure of a result: the latency of each model in each backend."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..train.figures import COLORS

__all__ = ["draw"]

MARKERS = "osD^vP<>Xh"


def draw(rows: Sequence[dict[str, Any]], note: str) -> Figure:
    """A panel for each setting and precision, a line for each model, and on it a mark for each way to run it.

    Args:
        rows: Rows of the result.
        note: Text below the panels.
    """
    keys = ("img_size", "batch_size", "threads", "precision")
    panels: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault(tuple(row[key] for key in keys), []).append(row)
    ways = sorted({row["way"] for row in rows})
    heights = [len({row["model"] for row in panel}) + 2 for panel in panels.values()]
    figure = Figure(figsize=(9, 1.4 + 0.3 * sum(heights) + 0.3 * len(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (setting, panel) in zip(grid, panels.items(), strict=True):
        models = list(dict.fromkeys(row["model"] for row in panel))
        for row in panel:
            i = ways.index(row["way"])
            style = {"marker": MARKERS[i % len(MARKERS)], "color": COLORS[i % len(COLORS)], "label": ways[i]}
            size = 9 if row["fastest"] else 6
            axes.plot(row["median_ms"], models.index(row["model"]), ls="", ms=size, alpha=0.9, **style)
            if row["fastest"]:
                text = f"{row['median_ms']:.3g}"
                axes.annotate(
                    text,
                    (row["median_ms"], models.index(row["model"])),
                    (-8, 0),
                    ha="right",
                    va="center",
                    textcoords="offset points",
                    fontsize=9,
                )
        axes.set_yticks(range(len(models)), models, fontsize=9.5)
        axes.set(xscale="log", ylim=(len(models) - 0.4, -0.6), xlabel="median time of a batch, ms (log scale)")
        axes.set_title("{} px, batch size {}, threads {}, {}".format(*setting), fontsize=10.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
        axes.grid(alpha=0.3)
    handles = {h.get_label(): h for axes in grid for h in axes.get_lines()}
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=4, frameon=False, fontsize=9.5
    )
    figure.supxlabel(fill(note, 130), fontsize=7.5, color="0.35")
    return figure
