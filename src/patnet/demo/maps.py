"""Gates and attention over a picture, drawn so that a position in the drawing is one in the picture."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

__all__ = ["Cell", "cell_at", "describe_attention", "draw_attention", "draw_gates", "enlarged", "weights_of"]

SIDE = 512  # px of a drawing's longer side
OPAQUE = 0.75  # of the colour where most is attended to


class Cell(NamedTuple):
    """A position of the map that is attended over, from 0."""

    row: int
    column: int


def covered(side: int, cells: int) -> float:
    """The part of a picture's side that so many cells stand for: strides are powers of two and may leave a border."""
    return cells * 2 ** math.floor(math.log2(side / cells)) / side if side >= cells else 1.0


def cell_at(x: float, y: float, picture: Image.Image, grid: tuple[int, ...]) -> Cell:
    """The cell of a grid of rows and columns at the position `x`, `y` of `draw_attention`'s drawing of a picture."""
    width, height = enlarged(picture).size
    rows, columns = grid
    row = int(y / (height * covered(picture.height, rows)) * rows)
    column = int(x / (width * covered(picture.width, columns)) * columns)
    return Cell(min(max(row, 0), rows - 1), min(max(column, 0), columns - 1))


def weights_of(attention: np.ndarray, cell: Cell, head: int | None = None) -> np.ndarray:
    """The weights that a cell gives to each, `(h, w)`, of one head or the mean of all.

    Args:
        attention: `(heads, h, w, h, w)`.
        cell: Of the query.
        head: From 0.
    """
    of_cell = attention[:, cell.row, cell.column]
    return of_cell.mean(0) if head is None else of_cell[head]


def enlarged(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture as the network was given it, its longer side of so many px, in colour."""
    scale = side / max(picture.size)
    size = round(picture.width * scale) or 1, round(picture.height * scale) or 1
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def coloured(picture: Image.Image, shares: np.ndarray, side: int = SIDE) -> Image.Image:
    """A picture enlarged and coloured by a map `(h, w)` in [0, 1]: as it is at 0, nearly hidden by a colour at 1."""
    large = enlarged(picture, side)
    size = _reached(picture, shares.shape, large)
    spread = np.zeros((large.height, large.width), np.float32)
    cells = Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    spread[: size[1], : size[0]] = np.asarray(cells)
    color = 255 * colormaps["inferno"](spread)[..., :3]
    opaque = OPAQUE * spread[..., None]
    mixed = np.asarray(large, np.float32) * (1 - opaque) + color * opaque
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _reached(picture: Image.Image, grid: tuple[int, ...], large: Image.Image) -> tuple[int, int]:
    """Width and height in px of the part of an enlarged picture that a grid of rows and columns stands for."""
    across, down = covered(picture.width, grid[1]), covered(picture.height, grid[0])
    return round(across * large.width) or 1, round(down * large.height) or 1


def _scaled(values: np.ndarray) -> np.ndarray:
    """A map on its own scale, 0 where it is least and 1 where it is most; 0 if it is even."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def draw_gates(picture: Image.Image, gates: Mapping[str, np.ndarray], side: int = 192) -> list[tuple[Image.Image, str]]:
    """A picture coloured by each block's spatial gate, on the block's own scale, which the caption says."""
    drawn = []
    for label, gate in gates.items():
        drawn.append((coloured(picture, _scaled(gate), side), f"{label}: {gate.min():.2f} to {gate.max():.2f}"))
    return drawn


def draw_attention(picture: Image.Image, weights: np.ndarray, cell: Cell) -> Image.Image:
    """A picture coloured where a cell attends to, brightest where most and left alone where least, the cell framed.

    Args:
        picture: As the network was given it.
        weights: `(h, w)`, as `weights_of` gives them.
        cell: Of the query.
    """
    mixed = coloured(picture, _scaled(weights))
    rows, columns = weights.shape
    width, height = _reached(picture, weights.shape, mixed)
    left, right = (round(k * width / columns) for k in (cell.column, cell.column + 1))
    top, bottom = (round(k * height / rows) for k in (cell.row, cell.row + 1))
    draw = ImageDraw.Draw(mixed)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="black", width=5)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="#4cc9f0", width=3)
    return mixed


def describe_attention(weights: np.ndarray, cell: Cell) -> str:
    """The numbers of the drawing, in a sentence."""
    rows, columns = weights.shape
    row, column = (int(k) for k in np.unravel_index(weights.argmax(), weights.shape))
    where = "itself" if (row, column) == cell else f"row {row + 1}, column {column + 1}"
    return (
        f"Row {cell.row + 1}, column {cell.column + 1} of {rows}x{columns} attends most to {where}, with "
        f"{100 * weights.max():.3g} %, and least with {100 * weights.min():.3g} %; to all alike it would be "
        f"{100 / weights.size:.3g} %."
    )
