"""What `inspect_network` and `grad_cam` found, drawn: one sheet, or single panels.

Pictures are drawn as the network saw them, and over them each map in cells of its own size. Most gates differ little
from place to place, so a colour scale is that of its map alone, whose least and largest value stand above it.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..errors import InputError
from .network import BlockShares, Inspection

__all__ = [
    "attended_most",
    "draw_answer",
    "draw_attention",
    "draw_channel_gates",
    "draw_grad_cam",
    "draw_shares",
    "draw_sheet",
    "draw_spatial_gates",
]

BLUE, LIGHT_BLUE, ORANGE, GREY = "#2a6f97", "#9fc2d6", "#d1495b", "0.6"
WIDTH = 12.0  # of a sheet, as all lengths here in inches
MARGIN, GAP, HEADING, CAPTION = 0.15, 0.12, 0.62, 0.24
SMALL = 8.0  # font size of what stands at a map

Position = tuple[int, int]


class _Place(NamedTuple):
    """A part of a figure, whose axes are placed by hand: a layout that is worked out takes seconds for so many.

    Attributes:
        figure: All of it.
        top: The part's upper edge, from the figure's upper edge.
    """

    figure: Figure
    top: float

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes with the upper left corner at x and y from the part's."""
        whole_width, whole_height = self.figure.get_size_inches()
        bottom = whole_height - self.top - y - height
        return self.figure.add_axes(
            (x / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
        )

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text with its upper left corner there."""
        width, height = self.figure.get_size_inches()
        self.figure.text(x / width, 1 - (self.top + y) / height, text, va="top", **style)

    def heading(self, text: str, explained: str) -> None:
        """What the part shows, and below it how to read that."""
        self.text(MARGIN, 0.2, text, fontsize=11, fontweight="bold")
        self.text(MARGIN, 0.4, explained, fontsize=8.5, color="0.35")


class _Part(NamedTuple):
    """What stands below each other: its height, and the function that draws it."""

    height: float
    draw: Callable[[_Place], None]


def _page(parts: Sequence[_Part], width: float = WIDTH) -> Figure:
    """A figure of parts below each other."""
    figure = Figure(figsize=(width, sum(part.height for part in parts)))
    top = 0.0
    for part in parts:
        part.draw(_Place(figure, top))
        top += part.height
    return figure


class _Tiles(NamedTuple):
    """Maps beside and below each other, in the shape of the picture, each with a caption above."""

    columns: int
    rows: int
    width: float
    height: float
    lines: int

    @property
    def total(self) -> float:
        """Height of all rows."""
        return self.rows * (self.height + self.lines * CAPTION * 0.75 + GAP)

    def axes(self, place: _Place, y: float, number: int) -> Axes:
        """Axes of a map, counted row by row."""
        row, column = divmod(number, self.columns)
        caption = self.lines * CAPTION * 0.75
        x = MARGIN + column * (self.width + GAP)
        return place.axes(x, y + caption + row * (self.height + caption + GAP), self.width, self.height)


def _tiles(number: int, most: int, picture: np.ndarray, *, lines: int = 1, width: float = WIDTH) -> _Tiles:
    """Room for so many maps, with at most `most` in a row and rows filled evenly."""
    rows = max(1, -(-number // most))
    columns = max(1, -(-number // rows))
    aspect = float(np.clip(picture.shape[0] / picture.shape[1], 0.4, 2.5))
    side = min((width - 2 * MARGIN - (columns - 1) * GAP) / columns, 2.6, 2.6 / aspect)
    return _Tiles(columns, rows, side, side * aspect, lines)


def _overlay(
    axes: Axes,
    picture: np.ndarray,
    values: np.ndarray,
    cmap: str,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """The picture in grey, and a map `(h, w)` over it, each value over the pixels that its cell stands for."""
    _show(axes, picture.mean(2))
    height, width = (_cell_size(side, cells) * cells for side, cells in zip(picture.shape, values.shape, strict=False))
    extent = (0.0, width, height, 0.0)
    axes.imshow(values, cmap=cmap, alpha=0.62, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    axes.set(xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, picture.shape[1], picture.shape[0], 0))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell_size(side: int, cells: int) -> float:
    """Pixels of a cell: the power of two that a network of strides 4, 8, 16 ... makes, which may leave out a border."""
    return 2 ** math.floor(math.log2(side / cells)) if side >= cells else side / cells


def _mark(axes: Axes, picture: np.ndarray, cells: tuple[int, ...], cell: Position) -> None:
    height, width = (_cell_size(side, n) for side, n in zip(picture.shape, cells, strict=False))
    corner = (cell[1] * width, cell[0] * height)
    for color, line in (("black", 3.0), ("white", 1.4)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=color, lw=line, zorder=5, clip_on=False))


def attended_most(inspection: Inspection) -> Position:
    """Row and column of the cell that the last block's attention weighs most, mean over heads and queries.

    Raises:
        InputError: If there is no attention.
    """
    weights = _last_attention(inspection).mean((0, 1, 2))
    row, column = np.unravel_index(int(weights.argmax()), weights.shape)
    return int(row), int(column)


def _last_attention(inspection: Inspection) -> np.ndarray:
    if not inspection.attention:
        raise InputError("there is no self-attention to draw: " + " ".join(inspection.missing))
    return list(inspection.attention.values())[-1]


def _cell_of(inspection: Inspection, position: Position | None) -> Position:
    """The cell to look from, in the last block's map."""
    if position is None:
        return attended_most(inspection)
    rows, columns = _last_attention(inspection).shape[1:3]
    row, column = position
    if not (0 <= row < rows and 0 <= column < columns):
        raise InputError(
            f"position {row} {column}: the attention has {rows}x{columns} cells; "
            f"give a row from 0 to {rows - 1} and a column from 0 to {columns - 1}"
        )
    return row, column


def _same_place(cell: Position, cells: tuple[int, ...], other: tuple[int, ...]) -> Position:
    """The cell of another map in which the middle of a cell lies."""
    row, column = (int((c + 0.5) * n / m) for c, m, n in zip(cell, cells, other, strict=True))
    return row, column


# Parts of a page.


def _spatial_gates(inspection: Inspection, picture: np.ndarray) -> _Part:
    gates = inspection.spatial_gates
    tiles = _tiles(len(gates), 10, picture)

    def draw(place: _Place) -> None:
        place.heading(
            "Spatial gates",
            "What each block lets through where, 0 to 1: yellow most, dark least; the range stands above each map.",
        )
        for number, (label, gate) in enumerate(gates.items()):
            axes = tiles.axes(place, HEADING, number)
            _overlay(axes, picture, gate, "viridis")
            axes.set_title(f"{label}:  {gate.min():.3f} to {gate.max():.3f}", fontsize=SMALL, pad=3)

    return _Part(HEADING + tiles.total, draw)


def _channel_gates(inspection: Inspection) -> _Part:
    gates = inspection.channel_gates
    rows = -(-len(gates) // 5)
    columns = -(-len(gates) // rows)
    pitch, height, left = (WIDTH - 2 * MARGIN) / columns, 1.0, 0.3

    def draw(place: _Place) -> None:
        place.heading(
            "Channel gates",
            "The gates of a block's channels in falling order: blue, left scale. "
            "Shut is 0, open 1. "
            "Behind each, mean ± deviation of its channel's map: grey, right scale.",
        )
        for number, (label, block) in enumerate(gates.items()):
            row, column = divmod(number, columns)
            y = HEADING + CAPTION + row * (height + CAPTION + 0.14)
            axes = place.axes(MARGIN + left + column * pitch, y, pitch - left - 0.32, height)
            order = np.argsort(-block.gate, kind="stable")
            gate, mean, std = block.gate[order], block.mean[order], block.std[order]
            rank = np.arange(len(order))
            behind = axes.twinx()
            behind.vlines(rank, mean - std, mean + std, color="0.82", lw=max(0.5, min(2.5, 100 / len(rank))))
            behind.plot(rank, mean, ".", color="0.5", ms=2.5)
            axes.plot(rank, gate, color=BLUE, lw=1.8)
            axes.set_zorder(behind.get_zorder() + 1)
            axes.patch.set_visible(False)
            most = 1.0 if gate.max() <= 1 else 2.0  # GCT's gates go to 2
            axes.set(ylim=(-0.03 * most, 1.03 * most), yticks=[0, most / 2, most], xlim=(-1, len(rank)), xticks=[])
            axes.tick_params(labelsize=6.5, length=2, pad=1, colors=BLUE)
            behind.locator_params(axis="y", nbins=4)
            behind.tick_params(labelsize=6.5, length=2, pad=1, colors="0.45")
            shut, whole = int((gate <= 0).sum()), int((gate >= 1).sum())
            axes.set_title(f"{label}:  {len(rank)} channels, {shut} shut, {whole} open", fontsize=SMALL, pad=3)

    return _Part(HEADING + rows * (height + CAPTION + 0.14), draw)


class _Map(NamedTuple):
    """Attention weights `(h, w)` to draw, what they are, and the cell to mark."""

    caption: str
    weights: np.ndarray
    cell: Position | None


def _attention(maps: Sequence[_Map], tiles: _Tiles, picture: np.ndarray, explained: str) -> _Part:
    """Weights as multiples of the even weight, all on one scale of their logarithm, which ends at the largest."""
    logs = [np.log2(np.maximum(m.weights * m.weights.size, 2.0**-8)) for m in maps]
    limit = max(0.01, *(float(log.max()) for log in logs))

    def draw(place: _Place) -> None:
        place.heading("Self-attention", explained)
        for number, (drawn, log) in enumerate(zip(maps, logs, strict=True)):
            axes = tiles.axes(place, HEADING, number)
            _overlay(axes, picture, log, "RdBu_r", -limit, limit)
            times = drawn.weights * drawn.weights.size
            axes.set_title(f"{drawn.caption}\n{times.min():.2f} to {times.max():.2f}", fontsize=SMALL, pad=3)
            if drawn.cell is not None:
                _mark(axes, picture, log.shape, drawn.cell)

    return _Part(HEADING + tiles.total, draw)


SCALE = "Times the even weight, on one logarithmic scale: red more, blue less, white even."


def _attention_of_blocks(inspection: Inspection, picture: np.ndarray, position: Position | None) -> _Part:
    """Mean over heads: from one cell, and over all cells."""
    cell, cells = _cell_of(inspection, position), _last_attention(inspection).shape[1:3]
    blocks = inspection.attention
    maps = []
    for label, weights in blocks.items():
        here = _same_place(cell, cells, weights.shape[1:3])
        maps.append(_Map(f"{label}, from the cell", weights.mean(0)[here], here))
    maps += [_Map(f"{label}, from all cells", w.mean((0, 1, 2)), None) for label, w in blocks.items()]
    tiles = _tiles(len(maps), max(8, len(blocks)), picture, lines=2)
    said = (
        f"Mean over heads, from row {cell[0]}, column {cell[1]} of {cells[0]}x{cells[1]} cells, marked, and from all."
    )
    return _attention(maps, tiles, picture, f"{said} {SCALE}")


def _attention_of_heads(inspection: Inspection, picture: np.ndarray, position: Position | None) -> tuple[_Part, float]:
    """Every head from one cell, and the means; and the width that this takes."""
    cell, cells = _cell_of(inspection, position), _last_attention(inspection).shape[1:3]
    maps = []
    heads = max(len(weights) for weights in inspection.attention.values())
    for label, weights in inspection.attention.items():
        here = _same_place(cell, cells, weights.shape[1:3])
        maps += [_Map(f"{label}, head {head + 1}", w[here], here) for head, w in enumerate(weights)]
        maps.append(_Map(f"{label}, mean over heads", weights.mean(0)[here], here))
        maps.append(_Map(f"{label}, and over all cells", weights.mean((0, 1, 2)), None))
    width = max(WIDTH, 1.75 * (heads + 2))
    tiles = _tiles(len(maps), heads + 2, picture, lines=2, width=width)
    said = f"From row {cell[0]}, column {cell[1]} of {cells[0]}x{cells[1]} cells, marked."
    return _attention(maps, tiles, picture, f"{said} {SCALE}"), width


def _shares(inspection: Inspection) -> _Part:
    height = 1.75

    def draw(place: _Place) -> None:
        place.heading(
            "Parts of the blocks",
            "Left, the convolved part's share of the squares of what goes into each mixer and comes out. "
            "Right, how much of what they take is changed, in norm.",
        )
        width = (WIDTH - 2 * MARGIN - 1.1) / 2
        carried = place.axes(MARGIN + 0.45, HEADING + 0.25, width, height)
        changed = place.axes(MARGIN + 1.1 + width, HEADING + 0.25, width, height)
        labels, blocks = list(inspection.shares), list(inspection.shares.values())
        at = np.arange(len(blocks))
        for offset, key, color, said in ((-0.2, "energy_in", LIGHT_BLUE, "in"), (0.2, "energy_out", BLUE, "out")):
            carried.bar(at + offset, [100 * getattr(b, key) for b in blocks], 0.4, color=color, label=f"going {said}")
        edges = [100 * b.convolved for b in [*blocks, blocks[-1]]]
        carried.step(
            [*(at - 0.5), len(blocks) - 0.5], edges, "k--", lw=1, where="post", label="its share of the channels"
        )
        carried.set(ylabel="%", ylim=(0, 105))
        lines: list[tuple[Callable[[BlockShares], float | None], str, str]] = [
            (lambda b: b.channel_gates, BLUE, "by the channel gates"),
            (lambda b: b.spatial_gates, ORANGE, "by the spatial gates"),
            (lambda b: b.added, GREY, "by the whole block"),
        ]
        for value, color, said in lines:
            points = [np.nan if (found := value(b)) is None else 100 * found for b in blocks]
            if not np.isnan(points).all():
                changed.plot(at, points, "o-", color=color, lw=1.4, ms=4, label=said)
        changed.set(ylabel="%")
        changed.set_ylim(bottom=0)
        for axes in (carried, changed):
            axes.set_xticks(at, labels, rotation=90 if len(blocks) > 18 else 0)
            axes.tick_params(labelsize=7)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
            axes.margins(x=0.02)
            axes.legend(frameon=False, fontsize=7.5, loc="upper left", ncols=3, bbox_to_anchor=(0, 1.16), borderpad=0)

    return _Part(HEADING + height + 0.6, draw)


def _grad_cam(axes: Axes, picture: np.ndarray, cam: np.ndarray, name: str) -> None:
    _show(axes, picture)
    if cam.max() > 0:
        axes.imshow(cam, cmap="inferno", alpha=0.55, vmin=0, vmax=1, extent=(0, picture.shape[1], picture.shape[0], 0))
    axes.set_title(f"Grad-CAM: {'what' if cam.max() > 0 else 'nothing'} speaks for {name}", fontsize=9, pad=4)


def _answer(
    inspection: Inspection, picture: np.ndarray, names: Sequence[str], cam: np.ndarray | None, cam_of: str | None
) -> _Part:
    tiles = _tiles(3, 3, picture)
    top = _ranked(inspection, names)

    def draw(place: _Place) -> None:
        axes = tiles.axes(place, 0.1, 0)
        _show(axes, picture)
        axes.set_title(f"As the network sees it, {picture.shape[1]}x{picture.shape[0]} px", fontsize=9, pad=4)
        if cam is not None:
            _grad_cam(tiles.axes(place, 0.1, 1), picture, cam, cam_of or top[0][0])
        x = MARGIN + (1 if cam is None else 2) * (tiles.width + GAP) + 1.6
        axes = place.axes(x, 0.1 + CAPTION, WIDTH - MARGIN - x, min(tiles.height, 0.34 * len(top) + 0.2))
        axes.barh(range(len(top)), [100 * p for _, p in top], color=[BLUE, *[LIGHT_BLUE] * (len(top) - 1)], height=0.7)
        for row, (_, p) in enumerate(top):
            axes.text(100 * p + 1.5, row, f"{100 * p:.1f} %", va="center", fontsize=9)
        axes.set_yticks(range(len(top)), [name for name, _ in top])
        axes.set(xlim=(0, 122), xticks=[], ylim=(len(top) - 0.4, -0.6))
        axes.tick_params(labelsize=9, length=0)
        axes.set_title("Probability", fontsize=9, pad=4)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)

    return _Part(tiles.total + 0.2, draw)


def _ranked(inspection: Inspection, names: Sequence[str], top: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes with their probabilities; a name too long for its place is cut."""
    powers = np.exp(inspection.logits.astype(np.float64) - inspection.logits.max())
    p = powers / powers.sum()
    order = np.argsort(-p, kind="stable")[:top]
    return [(names[i] if len(names[i]) <= 28 else names[i][:27] + "…", float(p[i])) for i in order]


def _lines(lines: Sequence[str]) -> _Part:
    """Sentences, broken where the page ends."""
    broken = [line for text in lines for line in textwrap.wrap(text, 170)]
    return _Part(
        0.17 * len(broken) + 0.2, lambda place: place.text(MARGIN, 0.08, "\n".join(broken), fontsize=8.5, color="0.3")
    )


def _title(text: str) -> _Part:
    return _Part(0.42, lambda place: place.text(MARGIN, 0.12, text, fontsize=13))


# What stands in __all__: figures of one part, and the sheet.


def draw_answer(
    inspection: Inspection,
    picture: np.ndarray,
    names: Sequence[str],
    *,
    cam: np.ndarray | None = None,
    cam_of: str | None = None,
) -> Figure:
    """The picture, Grad-CAM where it is given, and the likeliest classes.

    Args:
        inspection: Of the picture.
        picture: `(H, W, 3)` in 0 to 255, as the network saw it.
        names: Of the classes.
        cam: `(H, W)` in [0, 1], from `grad_cam`.
        cam_of: Name of its class; the likeliest one's if None.
    """
    return _page([_answer(inspection, picture, names, cam, cam_of)])


def draw_grad_cam(picture: np.ndarray, cam: np.ndarray, name: str) -> Figure:
    """Grad-CAM `(H, W)` of the class `name` over the picture `(H, W, 3)`."""
    aspect = float(np.clip(picture.shape[0] / picture.shape[1], 0.4, 2.5))
    part = _Part(
        4.7 * aspect + 0.5, lambda place: _grad_cam(place.axes(0.15, 0.35, 4.7, 4.7 * aspect), picture, cam, name)
    )
    return _page([part], 5.0)


def draw_spatial_gates(inspection: Inspection, picture: np.ndarray) -> Figure:
    """The spatial gate of every block over the picture `(H, W, 3)`.

    Raises:
        InputError: If there is none.
    """
    _need(inspection, inspection.spatial_gates, "spatial gates")
    return _page([_spatial_gates(inspection, picture)])


def draw_channel_gates(inspection: Inspection) -> Figure:
    """The channel gates of every block, sorted, with mean and deviation of their channels behind.

    Raises:
        InputError: If there are none.
    """
    _need(inspection, inspection.channel_gates, "channel gates")
    return _page([_channel_gates(inspection)])


def draw_attention(inspection: Inspection, picture: np.ndarray, position: Position | None = None) -> Figure:
    """The self-attention of every block and head from one cell, and its means, over the picture `(H, W, 3)`.

    Args:
        inspection: Of the picture.
        picture: As the network saw it.
        position: Row and column of the cell, from 0 at the upper left, in the map of the last block; the cell that is
            attended to most if None.

    Raises:
        InputError: If there is no self-attention, or no such cell.
    """
    part, width = _attention_of_heads(inspection, picture, position)
    return _page([part], width)


def draw_shares(inspection: Inspection) -> Figure:
    """What the convolved part of each block carries, and what its gates change; see `BlockShares`.

    Raises:
        InputError: If the network has no such blocks.
    """
    _need(inspection, inspection.shares, "blocks")
    return _page([_shares(inspection)])


def _need(inspection: Inspection, found: Any, what: str) -> None:
    if not found:
        raise InputError(f"there are no {what} to draw: {' '.join(inspection.missing)}")


def draw_sheet(
    inspection: Inspection,
    picture: np.ndarray,
    names: Sequence[str],
    *,
    cam: np.ndarray | None = None,
    cam_of: str | None = None,
    position: Position | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> Figure:
    """All that there is to be seen of one picture on one sheet, and a line for what there is not.

    Args:
        inspection: Of the picture.
        picture: `(H, W, 3)` in 0 to 255, as the network saw it.
        names: Of the classes.
        cam: `(H, W)` in [0, 1], from `grad_cam`; left out if None.
        cam_of: Name of its class; the likeliest one's if None.
        position: The cell that attention is drawn from, see `draw_attention`.
        title: Above all.
        notes: Sentences below all, beside those of `inspection.missing`.

    Raises:
        InputError: If there is no such cell.
    """
    parts = [_title(title)] if title else []
    parts.append(_answer(inspection, picture, names, cam, cam_of))
    if inspection.spatial_gates:
        parts.append(_spatial_gates(inspection, picture))
    if inspection.attention or position is not None:
        parts.append(_attention_of_blocks(inspection, picture, position))
    if inspection.channel_gates:
        parts.append(_channel_gates(inspection))
    if inspection.shares:
        parts.append(_shares(inspection))
    if inspection.missing or notes:
        parts.append(_lines([*inspection.missing, *notes]))
    return _page(parts)
