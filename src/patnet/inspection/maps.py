"""Maps over an image: which pixels a position stands for, and colours on one scale that is fixed around uniform.

Spatial gates and attention weights are drawn relative to the uniform map of the same mean. The scale never adapts to
a map, so a map that is nearly constant looks nearly constant.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

LIMIT = 4.0  # ends of the scale: a quarter of the uniform value and 4 times the uniform value
OPACITY = 0.8  # of the colours at the ends; at the uniform value the image shows through unchanged
LESS, MORE = (33, 102, 172), (230, 97, 1)  # blue and orange, told apart in all common forms of colour blindness


class Position(NamedTuple):
    """A position of a map, from 0 at the upper left."""

    row: int
    column: int

    def in_grid(self, old: tuple[int, int], new: tuple[int, int]) -> "Position":
        """The position that holds the centre of this one in another map of the same image; maps are (rows, columns)."""
        return Position(int((self.row + 0.5) * new[0] / old[0]), int((self.column + 0.5) * new[1] / old[1]))


def _pitch(side: int, positions: int) -> float:
    """Pixels of a position: a power of two, as strides are, which may leave pixels at the border uncovered."""
    return 2.0 ** math.floor(math.log2(side / positions)) if side >= positions else side / positions


def pixels_of(position: Position, grid: tuple[int, ...], size: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge in pixels of a position of a map of `grid` (rows, columns).

    The image that the network got has `size` (height, width).
    """
    height, width = map(_pitch, size, grid)
    left, top = position.column * width, position.row * height
    return left, top, left + width, top + height


def position_at(x: float, y: float, grid: tuple[int, ...], size: tuple[int, ...]) -> Position:
    """The position of a map at pixel `(x, y)` of the image; the nearest one beyond the map's edges."""
    height, width = map(_pitch, size, grid)
    return Position(min(max(int(y / height), 0), grid[0] - 1), min(max(int(x / width), 0), grid[1] - 1))


def most_attended(attention: np.ndarray) -> Position:
    """The position with the largest weight, mean over heads and queries of `attention` `(heads, h, w, h, w)`."""
    weights = attention.mean((0, 1, 2))
    return Position(*divmod(int(weights.argmax()), weights.shape[1]))


def relative(values: np.ndarray) -> np.ndarray:
    """A map of values >= 0 on the fixed scale: 0 at the map's mean, -1 at a quarter of it and below, 1 from 4 times."""
    mean = float(values.mean())
    if mean <= 0:
        return np.zeros(values.shape)
    return (np.log(np.maximum(values / mean, 1e-12)) / math.log(LIMIT)).clip(-1, 1)


def colors_of(scaled: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Colours `(H, W, 3)` in [0, 255] of values `(H, W)` in [-1, 1] over a grey background `(H, W)`."""
    opacity = OPACITY * np.abs(scaled)[..., None]
    color = np.where(scaled[..., None] < 0, LESS, MORE)
    return (background[..., None] * (1 - opacity) + color * opacity).round().astype(np.uint8)


def overlay(image: np.ndarray, values: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image in light grey, coloured by a map: orange above the map's mean, blue below it.

    Args:
        image: `(H, W, 3)` in [0, 255], as the network got it; so is the result.
        values: `(h, w)`, at least 0.
        size: Height and width of the result; the image's if None.
    """
    drawn = size or image.shape[:2]
    grey = Image.fromarray(image).convert("L").resize(drawn[::-1], Image.Resampling.BICUBIC)
    rows, columns = (
        ((np.arange(pixels) + 0.5) * side / pixels / _pitch(side, positions)).astype(int)
        for pixels, side, positions in zip(drawn, image.shape[:2], values.shape, strict=True)
    )
    padded = np.pad(relative(values), [(0, count) for count in values.shape])  # uncovered pixels are uniform
    return colors_of(padded[np.ix_(rows, columns)], 102 + 0.6 * np.asarray(grey, np.float64))
