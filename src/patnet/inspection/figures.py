"""Figures of what `inspect_network` and `grad_cam` found: one sheet, or single panels.

A panel is 9 inches wide, so that its smallest text is legible where a document shows it at 900 pixels.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..errors import InputError, nearest
from ..files import show_texts, shown
from .maps import LIMIT, Position, colors_of, most_attended, overlay, pixels_of
from .network import Inspection
from .position import draw_position

BLUE, LIGHT_BLUE, ORANGE, GREY = "#2a6f97", "#9fc2d6", "#e66101", "0.55"
WIDTH, MARGIN, GAP = 9.0, 0.12, 0.1  # inches, as are all lengths here
SMALL, NORMAL = 8, 9  # font sizes
DPI = 110


@dataclass(frozen=True)
class View:
    """An image as the network got it, with all that its panels show.

    Attributes:
        inspection: What `inspect_network` found.
        image: `(H, W, 3)` in [0, 255].
        class_names: Names of the classes.
        cam: `(H, W)` in [0, 1], from `grad_cam`; None if it was not computed.
        target: Index of the class that `cam` is of; the predicted class if None.
        position: Query position of the attention, in the last block's map; the most attended position if None.
        title: Title of the sheet.
        notes: Lines at the end of the sheet, after those of `inspection.missing`.
    """

    inspection: Inspection
    image: np.ndarray
    class_names: Sequence[str]
    cam: np.ndarray | None = None
    target: int | None = None
    position: tuple[int, int] | None = None
    title: str = ""
    notes: Sequence[str] = ()

    def query(self) -> tuple[Position, tuple[int, int]]:
        """The query position, with rows and columns of the last block's map.

        Raises:
            InputError: If there is no self-attention, or the position lies outside of the map.
        """
        if not self.inspection.attention:
            raise InputError(f"there is no self-attention to draw: {' '.join(self.inspection.missing)}")
        weights = list(self.inspection.attention.values())[-1]
        rows, columns = weights.shape[1:3]
        position = most_attended(weights) if self.position is None else Position(*self.position)
        if not (0 <= position.row < rows and 0 <= position.column < columns):
            raise InputError(
                f"position {position.row} {position.column}: the attention map has {rows}x{columns} positions; "
                f"give a row from 0 to {rows - 1} and a column from 0 to {columns - 1}"
            )
        return position, (rows, columns)


# Layout: axes are placed by hand, because a layout engine takes seconds for so many.


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes with their upper left corner at `(x, y)`, from the figure's."""
    total = figure.get_figheight()
    return figure.add_axes((x / WIDTH, (total - y - height) / total, width / WIDTH, height / total))


def _headed(title: str, explanation: str, height: float) -> tuple[Figure, float]:
    """A figure with a heading, what it shows and how to read it, above so much room; and the heading's height."""
    heading = 0.4 + 0.15 * (1 + explanation.count("\n"))
    figure = Figure((WIDTH, heading + height))
    x, top = MARGIN / WIDTH, heading + height
    figure.text(x, 1 - 0.1 / top, title, va="top", fontsize=11, fontweight="bold")
    figure.text(x, 1 - 0.32 / top, explanation, va="top", fontsize=SMALL, color="0.3")
    return figure, heading


def _show(axes: Axes, image: np.ndarray, caption: str, fontsize: float = SMALL) -> None:
    """An image without ticks; its pixels are the coordinates."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(caption, fontsize=fontsize, pad=2)


def _place(image: np.ndarray, most: float = 2.6) -> tuple[float, float]:
    """Width, at most `most`, and height of the place for an image; both are at most 2.6."""
    aspect = min(max(image.shape[0] / image.shape[1], 0.4), 2.5)
    width = min(most, 2.6, 2.6 / aspect)
    return width, width * aspect


def _grid(count: int, in_row: int) -> tuple[int, int]:
    """Rows and columns of so many panels, with rows of about equal length."""
    rows = -(-count // in_row)
    return rows, -(-count // rows)


def _maps_figure(
    image: np.ndarray, maps: Sequence[tuple[np.ndarray, str]], in_row: int, title: str, explanation: str
) -> tuple[Figure, list[Axes]]:
    """Maps with their captions over the image, row by row, with the colour scale in the upper right corner."""
    rows, columns = _grid(len(maps), in_row)
    width, height = _place(image, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns)
    caption = 0.06 + 0.16 * (1 + maps[0][1].count("\n"))
    figure, top = _headed(title, explanation, rows * (caption + height + GAP))
    scale = _axes(figure, WIDTH - MARGIN - 2.3, 0.1, 2.0, 0.12)
    colors = colors_of(np.linspace(-1, 1, 201)[None], np.full((1, 201), 190.0))
    scale.imshow(colors, aspect="auto", extent=(-1, 1, 0, 1))
    ticks = {1 / LIMIT: "≤ ¼", 0.5: "½", 1: "uniform", 2: "2", LIMIT: "≥ 4 times"}
    scale.set_xticks([math.log(tick, LIMIT) for tick in ticks], list(ticks.values()), fontsize=SMALL)
    scale.tick_params(length=2, pad=1)
    scale.set_yticks([])
    drawn = []
    for number, (values, text) in enumerate(maps):
        row, column = divmod(number, columns)
        y = top + row * (caption + height + GAP) + caption
        drawn.append(_axes(figure, MARGIN + column * (width + GAP), y, width, height))
        _show(drawn[-1], overlay(image, values), text)
    return figure, drawn


# Panels: each gives a figure, or None if the network has nothing of it.


def _answer(view: View) -> Figure:
    """The image, Grad-CAM if it was computed, and the most probable classes."""
    names = [name if len(name) <= 24 else name[:23] + "…" for name in map(shown, view.class_names)]
    (width, height), y = _place(view.image), 0.25
    figure = Figure((WIDTH, height + 0.35))
    size = "{1}x{0} px".format(*view.image.shape)
    _show(_axes(figure, MARGIN, y, width, height), view.image, f"Input, {size}", NORMAL)
    p = view.inspection.probabilities
    if view.cam is not None:
        name = names[int(p.argmax()) if view.target is None else view.target]
        title = f"Grad-CAM of {name}" if view.cam.max() > 0 else f"Grad-CAM: no evidence for {name}"
        axes = _axes(figure, MARGIN + width + GAP, y, width, height)
        _show(axes, view.image, title, NORMAL)
        axes.imshow(view.cam, cmap="inferno", alpha=0.7 * view.cam, vmin=0, vmax=1)
    top = np.argsort(-p, kind="stable")[:5]
    x = MARGIN + (1 if view.cam is None else 2) * (width + GAP) + 1.5
    axes = _axes(figure, x, y, WIDTH - MARGIN - x, min(height, 0.34 * len(top)))
    bars = axes.barh(range(len(top)), 100 * p[top], color=LIGHT_BLUE, height=0.7)
    axes.set_yticks(range(len(top)), [names[i] for i in top])  # two classes may have the same name
    bars[0].set_color(BLUE)
    axes.bar_label(bars, [f"{100 * p[i]:.1f} %" for i in top], padding=4, fontsize=NORMAL)
    axes.set(xlim=(0, 130), xticks=[], ylim=(len(top) - 0.4, -0.6))
    axes.tick_params(length=0, labelsize=NORMAL)
    axes.set_title("Probability", fontsize=NORMAL, pad=2, loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _spatial(view: View) -> Figure | None:
    """The spatial gate of every block."""
    gates = view.inspection.spatial_gates
    if not gates:
        return None
    maps = [(gate, f"{label}:  {gate.min():.2f} to {gate.max():.2f}") for label, gate in gates.items()]
    explanation = "Relative to the map's mean. Above each map: block, smallest and largest gate (0 to 1)."
    return _maps_figure(view.image, maps, 7, "Spatial gates", explanation)[0]


def _attention(view: View, heads: bool) -> Figure | None:
    """The weights of every block from one query position, of each head if wanted, and the means."""
    blocks = view.inspection.attention
    if not blocks and view.position is None:
        return None
    query, grid = view.query()
    maps: list[tuple[np.ndarray, str, Position | None]] = []
    for label, weights in blocks.items():
        here = query.in_grid(grid, weights.shape[1:3])
        if heads:
            maps += [(head[here], f"{label}, head {number}", here) for number, head in enumerate(weights, 1)]
        maps.append((weights.mean(0)[here], f"{label}, all heads" if heads else f"{label}, marked", here))
        maps.append((weights.mean((0, 1, 2)), f"{label}, mean", None))
    averaged = "" if heads else ", mean over heads"
    explanation = (
        f"From the marked position (row {query.row}, column {query.column} of {grid[0]}x{grid[1]}){averaged}; mean: "
        "over heads and positions.\nAbove each map: smallest and largest weight, in multiples of the uniform weight."
    )
    captioned = [
        (weights, f"{name}\n{weights.min() * weights.size:.2f} to {weights.max() * weights.size:.2f}")
        for weights, name, _ in maps
    ]
    in_row = min(8, max(map(len, blocks.values())) + 2) if heads else 8
    figure, drawn = _maps_figure(view.image, captioned, in_row, "Self-attention", explanation)
    for axes, (weights, _, marked) in zip(drawn, maps, strict=True):
        if marked is not None:
            left, top, right, bottom = pixels_of(marked, weights.shape, view.image.shape[:2])
            for color, line in (("white", 3.0), ("black", 1.2)):
                edge: dict[str, Any] = {"fill": False, "ec": color, "lw": line, "clip_on": False}
                axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **edge))
    return figure


def _channel(view: View) -> Figure | None:
    """The channel gates of every block in falling order, with mean and std of their channels."""
    gates = view.inspection.channel_gates
    if not gates:
        return None
    rows, columns = _grid(len(gates), 5)
    pitch, height = (WIDTH - MARGIN - 0.3) / columns, 1.0
    figure, top = _headed(
        "Channel gates",
        "Channels by falling gate. Blue, left axis: gate, 0 closed, 1 open. Grey, right axis: mean ± std of the "
        "channel's map.\nAbove each: block, number of channels, how many of them are closed or open.",
        rows * (height + 0.32) + 0.05,
    )
    for number, (label, block) in enumerate(gates.items()):
        row, column = divmod(number, columns)
        axes = _axes(figure, 0.3 + column * pitch, top + 0.22 + row * (height + 0.32), pitch - 0.6, height)
        order = np.argsort(-block.gate, kind="stable")
        gate, mean, std = block.gate[order], block.mean[order], block.std[order]
        rank = np.arange(len(order))
        right = axes.twinx()
        right.vlines(rank, mean - std, mean + std, color="0.8", lw=max(0.4, min(2.5, 80 / len(rank))))
        right.plot(rank, mean, ".", color=GREY, ms=2)
        right.locator_params(axis="y", nbins=4, prune="both")
        axes.plot(rank, gate, color=BLUE, lw=1.8)
        axes.set_zorder(right.get_zorder() + 1)
        axes.patch.set_visible(False)
        most = 1 if gate.max() <= 1 else 2  # the gates of GCT reach 2
        axes.set(ylim=(-0.03 * most, 1.03 * most), yticks=[0, most], xlim=(-1, len(rank)), xticks=[])
        for side, color in ((axes, BLUE), (right, "0.4")):
            side.tick_params(labelsize=SMALL, length=2, pad=1, colors=color)
        closed, opened = int((gate <= 0).sum()), int((gate >= 1).sum())
        axes.set_title(f"{label}:  {len(rank)}, {closed} closed, {opened} open", fontsize=SMALL, pad=3)
    return figure


def _shares(view: View) -> Figure | None:
    """Which share the convolved channels carry, and how much gates and blocks change what they get."""
    if not view.inspection.shares:
        return None
    labels, blocks = list(view.inspection.shares), list(view.inspection.shares.values())
    x, height, width = np.arange(len(blocks)), 1.8, WIDTH / 2 - 0.7
    figure, top = _headed(
        "Parts of the blocks",
        "Left: share of the convolved channels in the sum of squares of each mixer's input and output.\n"
        "Right: relative change (L2 norm) that the gates make to their channels, and the block to its input.",
        height + 0.6,
    )
    left, right = (_axes(figure, start, top + 0.25, width, height) for start in (0.58, WIDTH / 2 + 0.52))
    for offset, key, color, name in ((-0.2, "energy_in", LIGHT_BLUE, "input"), (0.2, "energy_out", BLUE, "output")):
        left.bar(x + offset, [100 * getattr(block, key) for block in blocks], 0.4, color=color, label=name)
    convolved = [100 * block.convolved for block in blocks]
    edges = [*(x - 0.5), x[-1] + 0.5]
    left.step(edges, [*convolved, convolved[-1]], "k--", lw=1, where="post", label="share of channels")
    left.set_ylim(0, 105)
    changes = (("channel_gates", "channel gates", BLUE), ("spatial_gates", "spatial gates", ORANGE))
    for key, name, color in (*changes, ("added", "block", GREY)):
        percent = 100 * np.array([getattr(block, key) for block in blocks], float)  # None becomes NaN
        if not np.isnan(percent).all():
            right.plot(x, percent, "o-", color=color, lw=1.4, ms=3.5, label=name)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_ylabel("%", fontsize=SMALL)
        axes.set_xticks(x, labels, rotation=90 if len(blocks) > 14 else 0)
        axes.tick_params(labelsize=SMALL)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        axes.legend(frameon=False, fontsize=SMALL, loc="lower left", ncols=3, bbox_to_anchor=(0, 1), borderpad=0.2)
    return figure


def _text(lines: Sequence[str], fontsize: float) -> Figure:
    """Lines of text, wrapped at the panel's width."""
    wrapped = "\n".join(line for text in lines for line in textwrap.wrap(text, int(1250 / fontsize)))
    figure = Figure((WIDTH, 0.2 + 0.02 * fontsize * (1 + wrapped.count("\n"))))
    figure.text(MARGIN / WIDTH, 0.5, wrapped, va="center", fontsize=fontsize, color="0.2")
    return figure


# What `draw` draws, in order, and what the sheet consists of.
PANELS: dict[str, Callable[[View], Figure | None]] = {
    "cam": _answer,
    "spatial": _spatial,
    "attention": partial(_attention, heads=True),
    "channel": _channel,
    "shares": _shares,
    "position": lambda view: draw_position(found) if (found := view.inspection.positions) else None,
}
SHEET = (_answer, _spatial, partial(_attention, heads=False), _channel, _shares)


def render(figure: Figure, dpi: float = DPI) -> Image.Image:
    """A figure as an image; its texts are shown as they are."""
    show_texts(figure)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def draw(panel: str, view: View) -> Image.Image | None:
    """Draw one of `PANELS`, or `"sheet"`, all panels below one another with a line for what the network does not have.

    Returns:
        The image, 990 px wide; None if the network has nothing of the panel.

    Raises:
        InputError: If there is no such panel, or the view's position lies outside of the attention map.
    """
    if panel != "sheet":
        if panel not in PANELS:
            raise InputError(f"no panel {panel!r}{nearest(panel, PANELS)}; choose from sheet, {', '.join(PANELS)}")
        figure = PANELS[panel](view)
        return None if figure is None else render(figure)
    figures = [_text([view.title], 12)] if view.title else []
    figures += [figure for part in SHEET if (figure := part(view)) is not None]
    if lines := [*view.inspection.missing, *view.notes]:
        figures.append(_text(lines, SMALL))
    return Image.fromarray(np.vstack([np.asarray(render(figure)) for figure in figures]))
