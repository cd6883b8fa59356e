"""Defects painted on solar cells that have none: cracks, dark regions and interrupted fingers, with their masks.

The appearance of a solar cell's defects in electroluminescence is known well enough to draw them: a crack is a thin
dark line, a part that cracks isolate is dark up to the busbars, an interrupted finger leaves a dark stripe across them.
A network trained to find painted defects needs fewer labelled solar cells to find real ones.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

DEFECTS = ["crack", "dark region", "interrupted finger"]

CANVAS = 300  # px of an image of ELPV, the resolution at which cracks are drawn
BANDS = np.arange(7) / 6  # where a cell's busbars may lie, and half-way between them
CLEAN = 0.3  # share of the cells that stay as they are

Line = list[tuple[float, float, float]]


def _crack(
    rng: np.random.Generator, angle: float, bend: float, start: np.ndarray | None = None, branch: int = 0
) -> list[Line]:
    """A crack and its branches as lines in a cell of side 1: points `x, y`, and the opacity there, up to 0.9."""
    if start is not None:
        point = start
    elif rng.random() < 0.5:  # from an edge
        along = rng.random()
        point = np.array([(along, 0.0), (along, 1.0), (0.0, along), (1.0, along)][rng.integers(4)])
    else:
        point = rng.random(2)
    length, step = rng.uniform(0.15, 1.5) / (1 + branch), rng.uniform(0.03, 0.08)
    opacity = rng.uniform(0.12, 0.9)
    points: Line = [(point[0], point[1], opacity)]
    branches: list[Line] = []
    for _ in range(int(length / step) + 1):
        angle += rng.normal(0, bend)
        point = point + step * np.array([np.cos(angle), np.sin(angle)])
        opacity = float(np.clip(opacity + rng.normal(0, 0.05), 0.1, 0.9))
        points.append((point[0], point[1], opacity))
        if branch < 2 and rng.random() < 0.05:
            branches += _crack(rng, angle + rng.choice([-1, 1]) * rng.uniform(0.3, 1.5), bend, point, branch + 1)
        if not (-0.07 < point[0] < 1.07 and -0.07 < point[1] < 1.07):
            break
    return [points, *branches]


def _cracks(rng: np.random.Generator) -> list[Line]:
    """The cracks of a cell: independent ones, or a family along silicon's cleavage planes."""
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
    """How much cracks darken each pixel, `(size, size)` in [0, 1], and their mask.

    As blurred as the images are: from sharper lines a network would learn to detect sharpness.
    """
    dark, mask = Image.new("L", (CANVAS, CANVAS)), Image.new("L", (size, size))
    pen, marker = ImageDraw.Draw(dark), ImageDraw.Draw(mask)
    for points in _cracks(rng):
        width = int(rng.integers(1, 5))
        for (x0, y0, opacity), (x1, y1, _) in pairwise(points):
            pen.line((CANVAS * x0, CANVAS * y0, CANVAS * x1, CANVAS * y1), fill=round(255 * opacity), width=width)
        marker.line([(size * x, size * y) for x, y, _ in points], fill=255, width=max(2, round(size / 64)))
    dark = dark.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
    cover = np.asarray(dark.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return cover, (np.asarray(mask) > 0) & (cover > 0.01)


def _band(rng: np.random.Generator) -> tuple[float, float]:
    low, high = sorted(rng.choice(BANDS, 2, replace=False))
    return float(low), float(high)


def _inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 where `distance` is negative, 0 where positive, with a ramp of width `edge` between."""
    return np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)


def _border(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, through: np.ndarray) -> np.ndarray:
    """Signed distance of each pixel from a wavy line that passes near `through`."""
    angle = rng.choice([rng.normal(0, 0.25) + np.pi * rng.integers(2), rng.uniform(0, 2 * np.pi)])
    along = (x - through[0]) * np.cos(angle) + (y - through[1]) * np.sin(angle)
    across = (y - through[1]) * np.cos(angle) - (x - through[0]) * np.sin(angle)
    across = across - rng.uniform(0.02, 0.25) + rng.normal(0, 0.3) * along**2
    for frequency in np.exp(rng.uniform(np.log(5), np.log(80), 4)):
        across = across + rng.normal(0, 0.15) / frequency * np.sin(frequency * along + rng.uniform(0, 6))
    return across


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Strength of a dark region from finger to finger, `(1, size)`, with mean 1."""
    drawn = np.repeat(rng.normal(0, rng.uniform(0.1, 0.6), size), rng.integers(1, 5))[:size]
    return np.clip(1 + np.convolve(drawn, [0.25, 0.5, 0.25], "same"), 0, 2)[None]


def _draw_region(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A part that one to three cracks isolate, often up to busbars, and those cracks; empty if too large."""
    through = rng.uniform(0.05, 0.95, 2)
    edge, wide = rng.uniform(0.008, 0.03), rng.uniform(0.006, 0.013)
    borders = [_border(rng, y, x, through) for _ in range(rng.integers(1, 4))]
    parts = [_inside(border, edge) for border in borders]
    region = np.prod(parts, axis=0)
    lines = [
        region / np.maximum(part, 0.5) * np.exp(-((border / wide) ** 2))
        for part, border in zip(parts, borders, strict=True)
    ]
    cracks = np.max(lines, axis=0)
    if rng.random() < 0.35:  # darkest at the first crack
        region = region * np.exp(np.minimum(borders[0], 0) / rng.uniform(0.05, 0.4))
    if rng.random() < 0.7:
        low, high = _band(rng)
        region = region * ((y >= low) & (y < high))
    if region.mean() > 0.7:
        return np.zeros_like(region), np.zeros_like(region)
    return region, cracks


def _draw_blob(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A dark spot without an edge."""
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
    """Draw the defects of a solar cell whose busbars are horizontal.

    Args:
        size: Side of the image in px.
        rng: Source of the random numbers.

    Returns:
        The factor of the brightness, `(size, size)` in [0, 1], and the masks of `DEFECTS`, `(defects, size, size)`.
    """
    factor, masks = np.ones((size, size), np.float32), np.zeros((len(DEFECTS), size, size), bool)
    if rng.random() < CLEAN:
        return factor, masks
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    cracks, regions, fingers, blobs = rng.random(4) < (0.55, 0.4, 0.25, 0.2)

    def darken(defect: int, cover: np.ndarray, strength: Any, mask: np.ndarray) -> None:
        nonlocal factor
        factor = factor * (1 - np.clip(cover * strength, 0, 0.97))
        masks[defect] |= mask

    if regions:
        region, borders = _draw_region(rng, y, x)
        # Some are striped, since the fingers in them are interrupted at different places.
        stripes = _stripes(rng, size) if rng.random() < 0.5 else 1.0
        darken(1, region, np.exp(rng.uniform(np.log(0.04), np.log(0.9))) * stripes, region > 0.5)
        if rng.random() < 0.7:
            darken(0, borders, rng.uniform(0.04, 0.45), borders > 0.35)
    if cracks or not (regions or fingers or blobs):
        cover, mask = _draw_cracks(rng, size)
        darken(0, cover, 1.0, mask)
    if fingers:
        for _ in range(rng.integers(1, 7)):
            finger = _draw_finger(rng, y, x)
            darken(2, finger, rng.uniform(0.1, 0.6), finger > 0.3)
    if blobs:
        blob = _draw_blob(rng, y, x)
        darken(1, blob, rng.uniform(0.2, 0.9), blob > 0.4)
    return factor.astype(np.float32), masks


def symmetry(image: Tensor, number: int) -> Tensor:
    """A square image `(..., S, S)` under one of the eight symmetries of the square."""
    image = torch.rot90(image, number % 4, (-2, -1))
    return image.flip(-1) if number > 3 else image


class RepeatedCells(Dataset):
    """Images of solar cells, repeated to `count` items of an epoch; items are `(PIL image, index)`."""

    def __init__(self, cells: Any, count: int) -> None:
        self.cells, self.count = cells, count

    @property
    def samples(self) -> Sequence[Any]:
        """The files of the images and their labels."""
        return self.cells.samples

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.cells[index % len(self.cells)][0], index


class Paint:
    """Transform of `(image, index)` to an image `(C, S, S)` with painted defects and their masks `(defects, S, S)`.

    `transform` gives a square tensor normalised by `mean` and `std`. The seed and the index determine the defects; a
    seed of None draws from numpy's global generator.
    """

    def __init__(self, transform: Callable, mean: float, std: float, seed: int | None = None) -> None:
        self.transform, self.seed = transform, seed
        self.black = -mean / std  # zero brightness, normalised

    def __call__(self, image: Image.Image, index: int) -> tuple[Tensor, Tensor]:
        """The painted image and its masks."""
        pixels = self.transform(image)
        rng = np.random.default_rng(np.random.randint(2**31) if self.seed is None else (self.seed, index))
        factor, masks = paint(pixels.shape[-1], rng)
        pixels = self.black + (pixels - self.black) * torch.from_numpy(factor)
        number = int(rng.integers(8))
        pixels, targets = symmetry(pixels, number), symmetry(torch.from_numpy(masks), number)
        return pixels.contiguous(), targets.to(torch.uint8).contiguous()
