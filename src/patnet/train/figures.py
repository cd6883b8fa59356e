"""What a run draws: curves, confusion matrix, sheets of pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..files import save_figure

__all__ = ["draw_comparison", "draw_confusion", "draw_curves", "draw_sheet", "save_figure"]

BLUE, ORANGE, GREEN, RED = "#2a6f97", "#d1495b", "#3a7d44", "#c1121f"


def draw_curves(history: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss, accuracy and learning rate over the epochs."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]

    def line(axes: Any, key: str, label: str, color: str, scale: float = 1.0) -> None:
        values = [row.get(key) for row in history]
        if any(v is not None for v in values):
            points = [np.nan if v is None else scale * v for v in values]
            axes.plot(epochs, points, color=color, label=label, marker="." if len(epochs) < 40 else None)

    painted = any("train_kinds" in row for row in history)
    line(loss, "train_loss", "training, with that of the maps" if painted else "training", BLUE)
    line(loss, "val_loss", "validation", ORANGE)
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy")
    line(accuracy, "train_top1", "training (augmented)", BLUE, 100)
    line(accuracy, "val_top1", "validation", ORANGE, 100)
    best = [row for row in history if row.get("best")]
    if best and best[-1].get("val_top1") is not None:
        accuracy.axvline(best[-1]["epoch"], color="0.7", lw=1, ls="--", label=f"best, epoch {best[-1]['epoch']}")
    line(accuracy, "train_kinds", "training", BLUE, 100)
    line(accuracy, "val_kinds", "validation", ORANGE, 100)
    accuracy.set(title="Kinds of defects told" if painted else "Top-1 accuracy", xlabel="epoch", ylabel="%")
    line(rate, "lr", "", GREEN)
    rate.set(title="Learning rate at the epoch's end", xlabel="epoch")
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, accuracy):
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_comparison(histories: Mapping[str, Sequence[dict[str, Any]]], title: str) -> Figure:
    """Validation accuracy or AP and the losses of several runs over their epochs, the best epoch of each as a dot.

    Args:
        histories: The epochs of each run, by its name.
        title: Above the curves.
    """
    columns = max(1, min(4, 130 // (6 + max(map(len, histories)))))
    rows = -(-len(histories) // columns)
    figure = Figure(figsize=(12, 4.2 + 0.22 * rows), layout="constrained")
    panels = figure.subplots(1, 3)
    recorded = {key for history in histories.values() for row in history for key in row}
    merits = [
        ("val_top1", "Validation top-1 accuracy", "%", 100.0),
        ("val_mask_AP", "Validation AP of masks", "AP", 1.0),
        ("val_box_AP", "Validation AP of boxes", "AP", 1.0),
    ]
    merit = next((pane for pane in merits if pane[0] in recorded), merits[0])
    panes = [
        merit,
        ("val_loss", "Validation loss", "loss", 1.0),
        ("train_loss", "Training loss", "loss", 1.0),
    ]
    for axes, (key, heading, unit, scale) in zip(panels, panes, strict=True):
        for number, (name, history) in enumerate(histories.items()):
            color, dashes = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
            points = [scale * row.get(key, np.nan) for row in history]
            marks = "." if len(points) == 1 else None
            axes.plot(
                [row["epoch"] for row in history], points, color=color, ls=dashes, lw=1.6, marker=marks, label=name
            )
            best = [row for row in history if row.get("best")][-1:]
            if best and key == merit[0] and key in best[0]:
                axes.plot(best[0]["epoch"], scale * best[0][key], "o", color=color, ms=6, mec="white")
        if not any(key in row for history in histories.values() for row in history):
            axes.text(0.5, 0.5, "none recorded", ha="center", va="center", transform=axes.transAxes, color="0.5")
        axes.set(title=heading, xlabel="epoch", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Confusion matrix, rows the true classes; counts, and shares of the row as colour."""
    classes = len(class_names)
    side = min(16.0, max(5.0, 1.6 + 0.55 * classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if classes <= 40:
        axes.set_xticks(range(classes), class_names, rotation=0 if classes < 4 else 60, ha="center")
        axes.set_yticks(range(classes), class_names)
    if classes <= 20:
        for i in range(classes):
            for j in range(classes):
                text = f"{matrix[i, j]}" if classes > 8 else f"{matrix[i, j]}\n{100 * shares[i, j]:.1f} %"
                color = "white" if shares[i, j] > 0.55 else "black"
                axes.text(j, i, text, ha="center", va="center", color=color, fontsize=11 if classes < 9 else 8)
    return figure


def draw_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], colors: Sequence[str], title: str, columns: int = 6
) -> Figure:
    """Pictures side by side, each with its caption above."""
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    figure = Figure(figsize=(2.0 * max(columns, 3), 2.55 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, picture, caption, color in zip(grid, pictures, captions, colors, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8.5, color=color, pad=3)
    figure.suptitle(title, fontsize=11)
    return figure
