"""Defects painted on cells that have none: cracks, dark regions and interrupted fingers, with where they are.

What a solar cell's defects look like in electroluminescence is known well enough to draw them: a crack is a thin dark
line, a part that cracks cut off is dark up to the busbars, an interrupted finger leaves a dark stripe across them. A
network that has learned to find painted ones needs fewer labelled cells to tell real ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["KINDS", "PaintedCells", "paint", "turned"]

KINDS = ["crack", "dark region", "interrupted finger"]

CANVAS = 300  # px of a photograph, at which cracks are drawn
BANDS = np.arange(7) / 6  # where a cell's busbars may lie, and half-way between them
CLEAN = 0.3  # share of the cells that stay as they are

Line = list[tuple[float, float, float]]


def _crack(
    rng: np.random.Generator, angle: float, bend: float, start: np.ndarray | None = None, branch: int = 0
) -> list[Line]:
    """A crack and its branches as lines in a cell of side 1: places `x, y`, and how open it is there, up to 0.9."""
    if start is not None:
        place = start
    elif rng.random() < 0.5:  # from an edge
        along = rng.random()
        place = np.array([(along, 0.0), (along, 1.0), (0.0, along), (1.0, along)][rng.integers(4)])
    else:
        place = rng.random(2)
    length, step = rng.uniform(0.15, 1.5) / (1 + branch), rng.uniform(0.03, 0.08)
    openness = rng.uniform(0.12, 0.9)
    points: Line = [(place[0], place[1], openness)]
    branches: list[Line] = []
    for _ in range(int(length / step) + 1):
        angle += rng.normal(0, bend)
        place = place + step * np.array([np.cos(angle), np.sin(angle)])
        openness = float(np.clip(openness + rng.normal(0, 0.05), 0.1, 0.9))
        points.append((place[0], place[1], openness))
        if branch < 2 and rng.random() < 0.05:
            branches += _crack(rng, angle + rng.choice([-1, 1]) * rng.uniform(0.3, 1.5), bend, place, branch + 1)
        if not (-0.07 < place[0] < 1.07 and -0.07 < place[1] < 1.07):
            break
    return [points, *branches]


def _cracks(rng: np.random.Generator) -> list[Line]:
    """The cracks of a cell: some by themselves, or a family along silicon's planes of cleavage."""
    count = min(rng.geometric(0.5), 7)
    plane = rng.choice([np.pi / 4, rng.uniform(0, np.pi)], p=[0.7, 0.3]) if rng.random() < 0.5 else None
    lines: list[Line] = []
    for _ in range(count):
        if plane is None:
            angle, bend = rng.uniform(0, 2 * np.pi), rng.choice([0.02, 0.1, 0.25])
        else:
            angle, bend = plane + np.pi / 2 * rng.integers(4) + rng.normal(0, 0.07), rng.choice([0.01, 0.05])
        lines += _crack(rng, angle, bend)
    return lines


def _draw_cracks(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How much darker cracks make each pixel, `(size, size)` in [0, 1], and where they are.

    As unsharp as the photographs are: a network would learn nothing but sharpness from lines that are sharper.
    """
    dark, where = Image.new("L", (CANVAS, CANVAS)), Image.new("L", (size, size))
    pen, marker = ImageDraw.Draw(dark), ImageDraw.Draw(where)
    for points in _cracks(rng):
        width = int(rng.integers(1, 5))
        for (x0, y0, openness), (x1, y1, _) in pairwise(points):
            pen.line((CANVAS * x0, CANVAS * y0, CANVAS * x1, CANVAS * y1), fill=round(255 * openness), width=width)
        marker.line([(size * x, size * y) for x, y, _ in points], fill=255, width=max(2, round(size / 64)))
    dark = dark.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
    cover = np.asarray(dark.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return cover, (np.asarray(where) > 0) & (cover > 0.01)


def _band(rng: np.random.Generator) -> tuple[float, float]:
    low, high = sorted(rng.choice(BANDS, 2, replace=False))
    return float(low), float(high)


def _inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 where `distance` is below 0, 0 where above, and a ramp of width `edge` between."""
    return np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)


def _border(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, through: np.ndarray) -> np.ndarray:
    """How far each place lies from a wavy line that passes near `through`, below 0 on the side of it."""
    angle = rng.choice([rng.normal(0, 0.25) + np.pi * rng.integers(2), rng.uniform(0, 2 * np.pi)])
    along = (x - through[0]) * np.cos(angle) + (y - through[1]) * np.sin(angle)
    across = (y - through[1]) * np.cos(angle) - (x - through[0]) * np.sin(angle)
    across = across - rng.uniform(0.02, 0.25) + rng.normal(0, 0.3) * along**2
    for frequency in np.exp(rng.uniform(np.log(5), np.log(80), 4)):
        across = across + rng.normal(0, 0.15) / frequency * np.sin(frequency * along + rng.uniform(0, 6))
    return across


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """How much weaker or stronger a dark region is from finger to finger, `(1, size)`, 1 on the average."""
    drawn = np.repeat(rng.normal(0, rng.uniform(0.1, 0.6), size), rng.integers(1, 5))[:size]
    return np.clip(1 + np.convolve(drawn, [0.25, 0.5, 0.25], "same"), 0, 2)[None]


def _draw_region(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A part that one to three cracks cut off, often up to busbars, and those cracks; empty if too large."""
    through = rng.uniform(0.05, 0.95, 2)
    edge, wide = rng.uniform(0.008, 0.03), rng.uniform(0.006, 0.013)
    borders = [_border(rng, y, x, through) for _ in range(rng.integers(1, 4))]
    parts = [_inside(border, edge) for border in borders]
    region = np.prod(parts, axis=0)
    cracks = np.max(
        [
            region / np.maximum(part, 0.5) * np.exp(-((border / wide) ** 2))
            for part, border in zip(parts, borders, strict=True)
        ],
        axis=0,
    )
    if rng.random() < 0.35:  # darkest at the first crack
        region = region * np.exp(np.minimum(borders[0], 0) / rng.uniform(0.05, 0.4))
    if rng.random() < 0.7:
        low, high = _band(rng)
        region = region * ((y >= low) & (y < high))
    if region.mean() > 0.7:
        return np.zeros_like(region), np.zeros_like(region)
    return region, cracks


def _draw_blob(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A dark patch without an edge."""
    centre, angle = rng.random(2), rng.uniform(0, np.pi)
    wide, high = np.exp(rng.uniform(np.log(0.012), np.log(0.2), 2))
    along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    return np.exp(-(((along / wide) ** 2 + (across / high) ** 2) ** rng.choice([1, 2]))).astype(np.float32)


def _draw_finger(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A stripe across the fingers, from one busbar to another or part of the way."""
    low, high = _band(rng)
    if rng.random() < 0.5:
        low += rng.random() * (high - low) / 2
    wide = rng.uniform(0.006, 0.03)
    left = rng.uniform(0, 1 - wide)
    edge = rng.uniform(0.01, 0.025)
    return _inside(np.maximum(left - x, x - left - wide), edge) * _inside(np.maximum(low - y, y - high), edge)


def paint(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the defects of a cell whose busbars lie horizontally.

    Args:
        size: Side of the cell in px.
        rng: To draw with.

    Returns:
        What is left of the brightness, `(size, size)` in [0, 1], and where each of `KINDS` is, `(kinds, size, size)`.
    """
    left, masks = np.ones((size, size), np.float32), np.zeros((len(KINDS), size, size), bool)
    if rng.random() < CLEAN:
        return left, masks
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    cracks, regions, fingers, blobs = rng.random(4) < (0.55, 0.4, 0.25, 0.2)

    def darken(kind: int, cover: np.ndarray, strength: Any, where: np.ndarray) -> None:
        nonlocal left
        left = left * (1 - np.clip(cover * strength, 0, 0.97))
        masks[kind] |= where

    if regions:
        region, borders = _draw_region(rng, y, x)
        # Some are striped, for the fingers in them are broken at different places.
        stripes = _stripes(rng, size) if rng.random() < 0.5 else 1.0
        darken(1, region, np.exp(rng.uniform(np.log(0.04), np.log(0.9))) * stripes, region > 0.5)
        if rng.random() < 0.7:
            darken(0, borders, rng.uniform(0.04, 0.45), borders > 0.35)
    if cracks or not (regions or fingers or blobs):
        cover, where = _draw_cracks(rng, size)
        darken(0, cover, 1.0, where)
    if fingers:
        for _ in range(rng.integers(1, 7)):
            finger = _draw_finger(rng, y, x)
            darken(2, finger, rng.uniform(0.1, 0.6), finger > 0.3)
    if blobs:
        blob = _draw_blob(rng, y, x)
        darken(1, blob, rng.uniform(0.2, 0.9), blob > 0.4)
    return left.astype(np.float32), masks


def turned(picture: Tensor, side: int) -> Tensor:
    """A square picture `(..., S, S)` seen from one of eight sides: four turns, of it or of its mirror image."""
    picture = torch.rot90(picture, side % 4, (-2, -1))
    return picture.flip(-1) if side > 3 else picture


class PaintedCells(Dataset):
    """Cells with painted defects, other ones each time; items are `(picture, masks)`.

    `picture` is `(C, S, S)`, and `masks` `(kinds, S, S)` in 0 and 1 says where each of `KINDS` is painted.

    Args:
        cells: Pictures of cells without defects, a data set with a `transform` that gives normalised tensors.
        count: Pictures in an epoch.
        mean: Of the normalisation.
        std: Likewise.
        seed: Paint the same defects on the same cells each time; None to draw from numpy's generator.
    """

    def __init__(self, cells: Any, count: int, mean: float, std: float, *, seed: int | None = None) -> None:
        self.cells, self.count, self.seed = cells, count, seed
        # Brightness 0, to which a defect darkens, in normalised numbers.
        self.black = -mean / std
        self.transform: Callable | None = None

    @property
    def samples(self) -> Sequence[Any]:
        """The files and the labels of the cells."""
        return self.cells.samples

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.cells.transform = self.transform
        picture, _ = self.cells[index % len(self.cells)]
        entropy = np.random.randint(2**31) if self.seed is None else (self.seed, index)
        rng = np.random.default_rng(entropy)
        left, masks = paint(picture.shape[-1], rng)
        picture = self.black + (picture - self.black) * torch.from_numpy(left)
        turn = partial(turned, side=int(rng.integers(8)))
        return turn(picture).contiguous(), turn(torch.from_numpy(masks)).to(torch.uint8).contiguous()
