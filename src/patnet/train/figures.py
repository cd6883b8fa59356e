"""Figures: training curves, comparison of runs, confusion matrix, image grid; and their colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..files import shown

# Okabe and Ito's palette, distinguishable with colour-blindness: blue, vermillion, green, purple, orange, sky, black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HIT, ERROR = COLORS[0], COLORS[1]


@dataclass(frozen=True)
class Panel:
    """A panel of the curves.

    Attributes:
        title: Its title.
        unit: Label of its vertical axis.
        lines: Columns of the metrics, with their labels in the legend.
        scale: Factor from the column to the unit.
        log: Whether the vertical axis is logarithmic.
    """

    title: str
    unit: str
    lines: Mapping[str, str]
    scale: float = 1.0
    log: bool = False


LEARNING_RATE = Panel("Learning rate", "at the end of the epoch", {"lr": ""})


def _values(history: Sequence[Mapping[str, Any]], column: str, scale: float) -> np.ndarray:
    return scale * np.array([row.get(column, np.nan) for row in history], dtype=float)


def _finish(axes: Any, title: str, unit: str) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_curves(history: Sequence[dict[str, Any]], panels: Sequence[Panel], title: str) -> Figure:
    """The metrics and the learning rate over the epochs; panels of which nothing was recorded are left out.

    Args:
        history: Lines of metrics, one for each epoch.
        panels: Panels in addition to the learning rate.
        title: Title of the figure.
    """
    recorded = {column for row in history for column, value in row.items() if value == value}
    shown = [panel for panel in (*panels, LEARNING_RATE) if recorded & set(panel.lines)]
    legend = max(len(panel.lines) for panel in shown) > 3
    figure = Figure(figsize=(3.7 * len(shown), 4.8 if legend else 4.2), layout="constrained")
    epochs = [row["epoch"] for row in history]
    best = next((row["epoch"] for row in reversed(history) if row.get("best")), None)
    for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines = [column for column in panel.lines if column in recorded]
        for number, column in enumerate(lines):
            values = _values(history, column, panel.scale)
            color = COLORS[number % len(COLORS)] if panel is not LEARNING_RATE else COLORS[2]
            marker = "." if len(epochs) < 40 else None
            axes.plot(epochs, values, color=color, marker=marker, label=panel.lines[column])
        if best is not None and any(column.startswith("val_") and column != "val_loss" for column in lines):
            axes.axvline(best, color="0.6", lw=1, ls="--", label=f"best epoch, {best}")
        _finish(axes, panel.title, panel.unit)
        if panel.log:
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        if panel is not LEARNING_RATE:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_comparison(histories: Mapping[str, Sequence[dict[str, Any]]], title: str) -> Figure:
    """The validation results and losses of several runs over their epochs, with a dot at the best epoch of each.

    Args:
        histories: Lines of metrics of each run, by its name.
        title: Title of the figure.
    """
    recorded = {column for history in histories.values() for row in history for column in row}
    results = [
        Panel("Validation top-1 accuracy", "%", {"val_top1": ""}, scale=100),
        Panel("Validation AP of masks", "AP", {"val_mask_AP": ""}),
        Panel("Validation AP of boxes", "AP", {"val_box_AP": ""}),
    ]
    losses = [Panel("Validation loss", "loss", {"val_loss": ""}), Panel("Training loss", "loss", {"train_loss": ""})]
    shown = [panel for panel in (*results, *losses) if recorded & set(panel.lines)] or losses[1:]
    columns = max(1, min(4, 110 // (6 + max(map(len, histories)))))
    figure = Figure(figsize=(max(8, 4 * len(shown)), 4.2 + 0.25 * -(-len(histories) // columns)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        (column,) = panel.lines
        for number, (name, history) in enumerate(histories.items()):
            look: dict[str, Any] = {"color": COLORS[number % 7], "ls": ("-", "--", ":", "-.")[number // 7 % 4]}
            values = _values(history, column, panel.scale)
            marker = "." if len(values) == 1 else None
            axes.plot([row["epoch"] for row in history], values, lw=1.6, marker=marker, label=name, **look)
            best = [(row["epoch"], value) for row, value in zip(history, values, strict=True) if row.get("best")]
            if panel in results and best:
                axes.plot(*best[-1], "o", color=look["color"], ms=6, mec="white")
        _finish(axes, panel.title, panel.unit)
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Confusion matrix, hits and errors in different colours, as shares of the true class.

    Args:
        matrix: `(classes, classes)` counts, a row for each true class.
        class_names: Names of the classes.
        title: Title of the figure.
    """
    classes = len(class_names)
    side = min(16.0, max(5.0, 1.6 + 0.55 * classes))
    figure = Figure(figsize=(side + 2, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(classes, dtype=bool)
    for chosen, cmap, label in ((~diagonal, "Oranges", "errors"), (diagonal, "Blues", "hits")):
        image = axes.imshow(np.where(chosen, shares, np.nan), cmap=cmap, vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label=f"{label}, share of the true class", shrink=0.8)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if classes <= 40:
        names = [shown(name) for name in class_names]
        axes.set_xticks(range(classes), names, rotation=0 if classes < 4 else 60, ha="center")
        axes.set_yticks(range(classes), names)
    if classes <= 20:
        for i in range(classes):
            for j in range(classes):
                text = f"{matrix[i, j]}" if classes > 8 else f"{matrix[i, j]}\n{100 * shares[i, j]:.1f} %"
                color = "white" if shares[i, j] > 0.55 else "black"
                axes.text(j, i, text, ha="center", va="center", color=color, fontsize=11 if classes < 9 else 8)
    return figure


def draw_image_grid(
    images: Sequence[Image.Image], captions: Sequence[str], colors: Sequence[str], title: str, columns: int = 6
) -> Figure:
    """Images in a grid, each with its caption above.

    Args:
        images: The images.
        captions: A caption for each.
        colors: The colour of each caption, such as `HIT` or `ERROR`.
        title: Title of the figure.
        columns: Images in a row.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(2.0 * max(columns, 3), 2.55 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption, color in zip(grid, images, captions, colors, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8.5, color=color, pad=3)
    figure.suptitle(title, fontsize=11)
    return figure
