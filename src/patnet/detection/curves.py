"""The curves of a detector's training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["draw_curves"]

BLUE, ORANGE, GREEN = "#2a6f97", "#d1495b", "#3a7d44"


def draw_curves(history: Sequence[dict[str, Any]], title: str) -> Figure:
    """Losses, validation AP and learning rate over the epochs."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    loss, precision, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    marks = "." if len(epochs) < 40 else None

    def line(axes: Any, key: str, **style: Any) -> None:
        values = [row.get(key, np.nan) for row in history]
        if not np.isnan(values).all():
            axes.plot(epochs, values, marker=marks, **style)

    line(loss, "train_loss", label="sum", color="black", lw=2)
    parts = [key for key in history[0] if key.startswith("train_") and key != "train_loss"]
    for number, key in enumerate(parts):
        line(loss, key, label=key.removeprefix("train_").removeprefix("loss_").replace("_", " "), color=f"C{number}")
    loss.set(title="Training losses", xlabel="epoch", ylabel="loss", yscale="log")
    for kind, color in (("box", BLUE), ("mask", ORANGE)):
        for name, dashes in (("AP", "-"), ("AP50", ":"), ("AP75", "--")):
            line(precision, f"val_{kind}_{name}", label=f"{kind} {name}", color=color, ls=dashes)
    best = [row["epoch"] for row in history if row.get("best")]
    if precision.lines and best:
        precision.axvline(best[-1], color="0.7", lw=1, label=f"best, epoch {best[-1]}")
    if not precision.lines:
        precision.text(0.5, 0.5, "none validated", ha="center", va="center", color="0.5")
    precision.set(title="Validation", xlabel="epoch", ylabel="average precision", ylim=(0, 1.02))
    line(rate, "lr", color=GREEN)
    rate.set(title="Learning rate at the epoch's end", xlabel="epoch")
    for axes in (loss, precision, rate):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, precision):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    figure.suptitle(title, fontsize=11)
    return figure
