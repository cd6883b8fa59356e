"""Defects painted on cells that have none: cracks, dark regions and interrupted fingers, with where they are.

What a solar cell's defects look like in electroluminescence is known well enough to draw them: a crack is a thin dark
line, a part that cracks cut off is dark up to the busbars, an interrupted finger leaves a dark stripe across them. A
network that has learned to find painted ones needs fewer labelled cells to tell real ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["KINDS", "PaintedCells", "paint", "turned"]

KINDS = ["crack", "dark region", "interrupted finger"]

CANVAS = 300  # px of a photograph, at which lines are drawn
BANDS = np.arange(7) / 6  # where a cell's busbars may lie, and half-way between them
CLEAN = 0.3  # share of the cells that stay as they are

Points = list[tuple[float, float]]


def _crack(rng: np.random.Generator, start: np.ndarray | None = None, branch: int = 0) -> list[Points]:
    """A crack and its branches as lines of points in a cell of side 1."""
    if start is not None:
        place = start
    elif rng.random() < 0.5:  # from an edge
        along = rng.random()
        place = np.array([(along, 0.0), (along, 1.0), (0.0, along), (1.0, along)][rng.integers(4)])
    else:
        place = rng.random(2)
    diagonal = np.pi / 4 + np.pi / 2 * rng.integers(4) + rng.normal(0, 0.1)  # as silicon likes to cleave
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else diagonal
    length, step = rng.uniform(0.15, 1.3) / (1 + branch), rng.uniform(0.03, 0.08)
    bend = rng.choice([0.02, 0.1, 0.25])
    points: Points = [(place[0], place[1])]
    branches: list[Points] = []
    for _ in range(int(length / step) + 1):
        angle += rng.normal(0, bend)
        place = place + step * np.array([np.cos(angle), np.sin(angle)])
        points.append((place[0], place[1]))
        if branch < 2 and rng.random() < 0.05:
            branches += _crack(rng, place, branch + 1)
        if not (-0.07 < place[0] < 1.07 and -0.07 < place[1] < 1.07):
            break
    return [points, *branches]


def _draw_crack(rng: np.random.Generator, size: int) -> np.ndarray:
    """How dark a crack makes each pixel, `(size, size)` in [0, 1], 1 where it is darkest.

    As unsharp as the photographs are: a network would learn nothing but sharpness from lines that are sharper.
    """
    canvas = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    for points in _crack(rng):
        pen.line([(CANVAS * x, CANVAS * y) for x, y in points], fill=255, width=int(rng.integers(1, 5)), joint="curve")
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
    cover = np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return cover / max(1.0, cover.max())


def _band(rng: np.random.Generator) -> tuple[float, float]:
    low, high = sorted(rng.choice(BANDS, 2, replace=False))
    return float(low), float(high)


def _inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 where `distance` is below 0, 0 where above, and a ramp of width `edge` between."""
    return np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)


def _draw_region(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A part between one to three wavy lines, and often between two busbars; empty if it came out too large."""
    centre = rng.uniform(0.07, 0.93, 2)
    edge = rng.uniform(0.015, 0.04)
    region = np.ones(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for _ in range(rng.integers(1, 4)):
        angle = rng.uniform(0, 2 * np.pi)
        waves: Any = sum(
            rng.normal(0, 0.007) * np.sin(x / rng.uniform(0.03, 0.13) + y / rng.uniform(0.03, 0.13) + rng.uniform(0, 6))
            for _ in range(2)
        )
        across = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        region *= _inside(across + waves - rng.uniform(0.02, 0.23), edge)
    if rng.random() < 0.7:
        low, high = _band(rng)
        region = region * ((y >= low) & (y < high))
    return region if region.mean() < 0.7 else np.zeros_like(region)


def _draw_blob(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A dark patch without an edge."""
    centre, (wide, high), angle = rng.random(2), rng.uniform(0.02, 0.2, 2), rng.uniform(0, np.pi)
    along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    return np.exp(-(((along / wide) ** 2 + (across / high) ** 2) ** rng.choice([1, 2]))).astype(np.float32)


def _draw_finger(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A stripe across the fingers, from one busbar to another or part of the way."""
    low, high = _band(rng)
    if rng.random() < 0.5:
        low += rng.random() * (high - low) / 2
    wide = rng.uniform(0.008, 0.04)
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
    cracks, regions, fingers, blobs = rng.random(4) < (0.6, 0.3, 0.25, 0.15)

    def darken(kind: int, cover: np.ndarray, strength: Any, threshold: float) -> None:
        nonlocal left
        left = left * (1 - np.clip(cover * strength, 0, 0.97))
        masks[kind] |= cover > threshold

    if regions:
        # Some are striped, for the fingers in them are broken at different places.
        stripes = np.clip(1 + rng.normal(0, 0.3, (1, size)), 0, 1.4) if rng.random() < 0.4 else 1.0
        darken(1, _draw_region(rng, y, x), rng.uniform(0.1, 0.9) * stripes, 0.5)
    if cracks or not (regions or fingers or blobs):
        for _ in range(rng.integers(1, 4)):
            darken(0, _draw_crack(rng, size), rng.uniform(0.06, 0.45), 0.35)
    if fingers:
        for _ in range(rng.integers(1, 7)):
            darken(2, _draw_finger(rng, y, x), rng.uniform(0.1, 0.6), 0.3)
    if blobs:
        darken(1, _draw_blob(rng, y, x), rng.uniform(0.2, 0.9), 0.4)
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
