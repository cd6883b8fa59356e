"""The picture: published accuracy against measured speed."""

import os
import tempfile
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .report import say_machine

__all__ = ["draw", "save"]

OURS, BASELINE = "#d1495b", "#2a6f97"
OTHERS = ("#3a7d44", "#8d6a9f", "#c98a1b", "#5b8e9a", "#7a5c48", "#6b7280", "#a3b18a", "#b56576", "#4d5d8c", "#98a000")
MARKERS = "osD^vP<>Xh"


def save(figure: Figure, file: Path, dpi: int = 130) -> Path:
    """Write a picture aside and move it into place."""
    handle, aside = tempfile.mkstemp(dir=file.parent, prefix=".writing-", suffix=file.suffix)
    os.close(handle)
    figure.savefig(aside, dpi=dpi, facecolor="white")
    Path(aside).chmod(0o644)
    os.replace(aside, file)
    return file


def _style(family: str, families: list[str]) -> dict[str, Any]:
    if family == "PATNet":
        return {"color": OURS, "marker": "*", "markersize": 15, "linewidth": 2.2, "zorder": 5}
    if family == "FasterNet":
        return {"color": BASELINE, "marker": "o", "markersize": 6, "linewidth": 2.2, "zorder": 4}
    i = [f for f in families if f not in ("PATNet", "FasterNet")].index(family)
    return {"color": OTHERS[i % len(OTHERS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1.3}


def _panel(axes: Any, rows: list[dict[str, Any]], families: list[str]) -> None:
    """One batch size and precision: a line for each family, and the models without accuracy on the lower edge."""
    for family in families:
        known = sorted((r["top1"], r["images_per_s"], r["model"]) for r in rows if r["family"] == family and r["top1"])
        if not known:
            continue
        style = _style(family, families)
        axes.plot([x for _, x, _ in known], [y for y, _, _ in known], label=family, **style)
        for y, x, model in known:
            axes.annotate(
                model.partition("_")[2].removeprefix("conv_") or model.removeprefix("resnet"),
                (x, y),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=9 if family == "PATNet" else 6.5,
                fontweight="bold" if family == "PATNet" else None,
                color=style["color"],
            )
    unknown = [r for r in rows if r["family"] == "PATNet" and r["top1"] is None]
    for r in unknown:
        axes.axvline(r["images_per_s"], ymax=0.06, color=OURS, lw=1.5)
        axes.annotate(
            r["model"].partition("_")[2],
            (r["images_per_s"], 0.065),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
            color=OURS,
        )
    first = rows[0]
    threads = "" if first["threads"] == 1 else f", {first['threads']} threads"
    axes.set_title(f"Batch {first['batch']}, {first['precision']}{threads}", fontsize=11)
    axes.set_xscale("log")
    axes.set(xlabel="images/s, measured (log scale)", ylabel="ImageNet-1K top-1, published, %")
    speeds = [r["images_per_s"] for r in rows]
    narrow = max(speeds) < 8 * min(speeds)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if narrow else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08, y=0.12)
    axes.grid(alpha=0.3)


def draw(result: dict[str, Any]) -> Figure | None:
    """Published top-1 against images/s of each model's fastest candidate, a line for each family.

    A panel for the smallest and one for the largest batch, at the fastest precision; None where no accuracy is known.
    The PATNets without a published accuracy are marks on the lower edge.
    """
    rows = [r for r in result["rows"] if r["fastest"]]
    if not any(r["top1"] for r in rows):
        return None
    panels = []
    for batch in sorted({r["batch"] for r in rows})[:: max(1, len({r["batch"] for r in rows}) - 1)]:
        of_batch = [r for r in rows if r["batch"] == batch]
        keys = {(r["precision"], r["threads"]) for r in of_batch}
        best = max(keys, key=lambda k: max(r["images_per_s"] for r in of_batch if (r["precision"], r["threads"]) == k))
        panels.append([r for r in of_batch if (r["precision"], r["threads"]) == best])
    families = list(dict.fromkeys(r["family"] for r in rows))
    figure = Figure(figsize=(6.6 * len(panels) + 1.6, 6.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, of_panel in zip(grid, panels, strict=True):
        _panel(axes, of_panel, families)
    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=9)
    stated = fill(say_machine(result["machine"]), 100 * len(panels))
    marks = (
        "; marks on the lower edge: PATNets without a published accuracy"
        if any(r["family"] == "PATNet" and r["top1"] is None for r in rows)
        else ""
    )
    figure.supxlabel(f"Further right is faster, further up more accurate{marks}.\n{stated}", fontsize=7.5, color="0.35")
    return figure
