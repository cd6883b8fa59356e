"""Gates and attention over a picture, drawn so that a position in the drawing is one in the picture."""

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


def cell_at(x: float, y: float, size: tuple[int, int], grid: tuple[int, int]) -> Cell:
    """The cell of a grid of rows and columns that holds the pixel `x`, `y` of a picture of this width and height."""
    (width, height), (rows, columns) = size, grid
    row, column = int(y / height * rows), int(x / width * columns)
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


def coloured(picture: Image.Image, shares: np.ndarray) -> Image.Image:
    """A picture coloured by a map `(h, w)` in [0, 1]: as it is at 0, nearly hidden by a bright colour at 1."""
    spread = Image.fromarray(shares.astype(np.float32)).resize(picture.size, Image.Resampling.NEAREST)
    share = np.asarray(spread)
    color = 255 * colormaps["inferno"](share)[..., :3]
    opaque = OPAQUE * share[..., None]
    mixed = np.asarray(picture, np.float32) * (1 - opaque) + color * opaque
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def draw_gates(picture: Image.Image, gates: Mapping[str, np.ndarray], side: int = 192) -> list[tuple[Image.Image, str]]:
    """A picture coloured by each block's spatial gate, on the block's own scale, which the caption says."""
    small = enlarged(picture, side)
    drawn = []
    for label, gate in gates.items():
        low, high = float(gate.min()), float(gate.max())
        scaled = (gate - low) / (high - low) if high > low else np.zeros_like(gate)
        drawn.append((coloured(small, scaled), f"{label}: {low:.2f} to {high:.2f}"))
    return drawn


def draw_attention(picture: Image.Image, weights: np.ndarray, cell: Cell) -> Image.Image:
    """A picture coloured where a cell attends to, the brightest where most, and the cell itself framed.

    Args:
        picture: As the network was given it.
        weights: `(h, w)`, as `weights_of` gives them.
        cell: Of the query.
    """
    mixed = coloured(enlarged(picture), weights / max(float(weights.max()), 1e-12))
    rows, columns = weights.shape
    left, right = (round(k * mixed.width / columns) for k in (cell.column, cell.column + 1))
    top, bottom = (round(k * mixed.height / rows) for k in (cell.row, cell.row + 1))
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
        f"{100 * weights.max():.1f} %; to all alike it would be {100 / weights.size:.1f} %."
    )
