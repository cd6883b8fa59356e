"""Synthetic tasks with a known right answer: each call draws new images, and labels 0 or 1 with equal probability.

A task is called as `task(rng, images, level)`, where `level` is its difficulty, and gives images `(N, C, H, W)` and
labels `(N, outputs)`. All tasks are in `TASKS`, with their contents: what the label depends on.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

Rng = np.random.Generator
JITTER = 0.3  # spread of a texture's parameter between maps of one class
BORDER = 2  # squares of 2 px without marks


def _pack(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def _smooth(rng: Rng, *shape: int) -> np.ndarray:
    """Normal fields whose neighbours are correlated, `(..., H, W)`, periodic, with variance 1."""
    z = rng.standard_normal(shape, np.float32)
    for axis in (-1, -2):
        z = (np.roll(z, 1, axis) + 2 * z + np.roll(z, -1, axis)) / 6**0.5
    return z


def _standardise(x: np.ndarray) -> np.ndarray:
    """Maps with a mean of exactly 0 and an unbiased std of exactly 1."""
    x = x.astype(np.float64)
    x = x - x.mean((-1, -2), keepdims=True)
    return x / x.std((-1, -2), keepdims=True, ddof=1)


def textures(rng: Rng, images: int, level: float, content: str = "std") -> tuple[Tensor, Tensor]:
    """Textures of 8 channels, 12x12. Of the last 6, the untouched ones of a PAT_ch, each map tells the class.

    A map's parameter is `level` times -1 or 1, the class, plus normal noise of variance 1: no classifier of 6 maps is
    right more often than `Phi(6 ** 0.5 * level)`. The parameter is that of the map's mean, its std, its
    skewness (shift of a sinh-arcsinh transform), its kurtosis (tail weight of that transform), or its arrangement
    (correlation along rows or along columns). Whatever else is equal: mean exactly 1 and std exactly 1.
    """
    y = rng.integers(0, 2, (images, 1))
    z = _smooth(rng, images, 8, 12, 12)
    a = level * (2 * y - 1)[..., None, None] + rng.standard_normal((images, 8, 1, 1))
    a[:, :2] = rng.standard_normal((images, 2, 1, 1))
    scale, shift = np.ones_like(a), np.ones_like(a)
    if content == "mean":
        shift = 1 + JITTER * a
    elif content == "std":
        scale = np.exp(JITTER * a)
    elif content == "skewness":
        z = np.sinh(np.arcsinh(z) + JITTER * a)
    elif content == "kurtosis":
        z = np.sinh(np.arcsinh(z) * np.exp(JITTER * a))
    else:  # the values of each row or column are as before, in another order
        along = np.clip(0.5 + JITTER * a, 0, 1)
        z = np.sqrt(along) * np.roll(z, 1, -1) + np.sqrt(1 - along) * np.roll(z, 1, -2) + z
    return _pack(shift + scale * _standardise(z), y)


def _squares(x: np.ndarray) -> np.ndarray:
    """Each pixel as a square of 2x2 pixels."""
    return x.repeat(2, 2).repeat(2, 3)


def pairs(rng: Rng, images: int, level: int, content: str = "pairs") -> tuple[Tensor, Tensor]:
    """Four squares at the corners of a rectangle, 56x32 px, `level` pixels between the columns: which colours pair up?

    Two squares are red and two blue; those of a column always differ. Label 1: the two of a row are equal; label 0:
    they differ. The rows are 16 or 20 px from each other, so that strides of 2 and 4 px do not tell them apart, and at
    least 16 px from the upper and the lower border, where padding would. So the parts of an image that are up to 16 px
    wide and high tell the label only if they show a whole row, and all of them together do not tell it either. Content
    `"majority"` is the control: three squares of one colour, and the label is that colour.
    """
    y, step = rng.integers(0, 2, (images, 1)), level // 2
    height = rng.choice([8, 10], images)
    row = 8 + rng.integers(0, 12 - height)
    column = rng.integers(0, 16 - step, images)
    first = rng.integers(0, 2, images)
    same = y[:, 0]
    colors = np.stack((first, np.where(same, first, 1 - first), 1 - first, np.where(same, 1 - first, first)))
    if content == "majority":
        colors = np.where(np.arange(4)[:, None] == rng.integers(0, 4, images), 1 - same, same)
    x, corner = np.zeros((images, 3, 28, 16)), np.arange(4)[:, None]
    x[np.arange(images), colors, row + height * (corner // 2), column + step * (corner % 2)] = 1
    return _pack(_squares(x), y)


def _grow(rng: Rng, images: int, size: int, length: int) -> np.ndarray:
    """Two paths of `length` squares that touch neither themselves nor each other, `(n <= images, 2, length, 2)`."""
    taken = np.zeros((images, size + 3, size + 3), bool)  # squares are 1 to size; index -1 is the last one
    alive, every = np.ones(images, bool), np.arange(images)
    moves = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
    paths = np.zeros((images, 2, length, 2), int)
    for path in (0, 1):
        here = rng.integers(1, size + 1, (images, 2))
        for i in range(length):
            options = here[:, None] + moves if i else here[:, None]
            row, column = options[..., 0], options[..., 1]
            beside = sum(taken[every[:, None], row + r, column + c].astype(int) for r, c in moves)
            free = ((options >= 1) & (options <= size)).all(-1) & ~taken[every[:, None], row, column]
            free &= beside == (i > 0)  # next to no other square than the one before
            choice = np.where(free, rng.random(free.shape), -1).argmax(1)
            alive &= free.any(1)
            here = options[every, choice].clip(1, size)
            paths[:, path, i] = here
            taken[every, here[:, 0], here[:, 1]] = True
    return paths[alive] - 1


def paths(rng: Rng, images: int, level: int, content: str = "paths") -> tuple[Tensor, Tensor]:
    """Two paths of `level` squares, 32x32 px, and two marks at ends of them: are both marks on one path?

    The distances from one end of the first path to its other end, and to the marked end of the second, are equal, so
    that neither the distance of the marks nor its parity tells the label. Content `"marked"` is the control: one end is
    marked or two.
    """
    found, number = [], 0
    while number < images:
        grown = _grow(rng, 4 * images, 16, level)
        start, end, other = grown[:, 0, 0], grown[:, 0, -1], grown[:, 1, 0]
        lengths = [np.abs(start - place).sum(1) for place in (end, other)]
        found.append(grown[lengths[0] == lengths[1]])
        number += len(found[-1])
    both = np.concatenate(found)[:images]
    y, x, image = rng.integers(0, 2, (images, 1)), np.zeros((images, 3, 16, 16)), np.arange(images)
    x[image, 0, *both.reshape(images, -1, 2).T] = 1
    first, last, other = both[:, 0, 0], both[:, 0, -1], both[:, 1, 0]
    second = np.where(y == 1, last, other) if content == "paths" else np.where(y == 1, other, first)
    x[image, 1, *first.T] = x[image, 1, *second.T] = 1
    return _pack(_squares(x), y)


def marks(rng: Rng, images: int, level: int, content: str = "order") -> tuple[Tensor, Tensor]:
    """Two marks at random places of an image of `level` pixels: is the red one left of the blue one, and is it above?

    Their offset is at most 6 squares of 2 pixels in each direction, that of the training images, at every size; no two
    share a row or a column. Both are at least 4 pixels, one position, from the border; a convolution still sees its
    padding beside a mark there, and both marks where they are close. Content `"brightness"` is the control: is the red
    one bright, and is the blue one?
    """
    y, size = rng.integers(0, 2, (images, 2)), level // 2 - 2 * BORDER
    offset = rng.integers(1, 7, (images, 2)) * (2 * y - 1 if content == "order" else rng.choice([-1, 1], (images, 2)))
    low = np.maximum(0, -offset)
    red = BORDER + low + (rng.random((images, 2)) * (size - np.abs(offset))).astype(int)
    blue = red + offset
    bright = 0.5 + 0.5 * y if content == "brightness" else np.ones((images, 2))
    x, image = np.zeros((images, 3, level // 2, level // 2)), np.arange(images)
    for color, place in enumerate((red, blue)):
        x[image, color, place[:, 1], place[:, 0]] = bright[:, color]
    return _pack(_squares(x), y)


def grain(rng: Rng, images: int, level: int, content: str = "independent") -> tuple[Tensor, Tensor]:
    """Textures of 8 channels, 12x12, each with grain along its rows or along its columns: which, for each channel?

    The direction is drawn for each channel (`"independent"`), or for the image (`"redundant"`, the control). A
    channel's values do not tell, only their arrangement. `level` is the width of the network, not of the task.
    """
    y = rng.integers(0, 2, (images, 8))
    if content == "redundant":
        y[:] = y[:, :1]
    grains = [rng.standard_normal((images, 8, *size), np.float32) for size in ((12, 1), (1, 12))]
    noise = rng.standard_normal((images, 8, 12, 12), np.float32)
    return _pack(np.where(y[..., None, None] == 1, *grains) + 0.5 * noise, y)


TEXTURES = ("mean", "std", "skewness", "kurtosis", "arrangement")
TASKS = {
    **{name: partial(textures, content=name) for name in TEXTURES},
    "pairs": pairs,
    "majority": partial(pairs, content="majority"),
    "paths": paths,
    "marked": partial(paths, content="marked"),
    "order": marks,
    "brightness": partial(marks, content="brightness"),
    "independent": grain,
    "redundant": partial(grain, content="redundant"),
}
