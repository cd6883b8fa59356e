"""What a data set gives: pictures with labels, in a training, a validation and perhaps a test split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .images import read_image

__all__ = ["DataSplits", "PictureFiles", "stratified_split"]


class PictureFiles(Dataset):
    """Pictures in files, with a label for each.

    Args:
        samples: `(path, label)` for each picture.
        mode: `"RGB"` or `"L"`.
        transform: From picture to tensor; None gives the picture itself.
    """

    def __init__(self, samples: Sequence[tuple[Path, int]], mode: str, transform: Callable | None = None) -> None:
        self.samples = list(samples)
        self.mode = mode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def picture(self, index: int) -> Image.Image:
        """The picture itself, before `transform`."""
        return read_image(self.samples[index][0], self.mode)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self.picture(index)
        return self.transform(picture) if self.transform else picture, self.samples[index][1]


@dataclass
class DataSplits:
    """A data set as training sees it.

    Attributes:
        class_names: Names of the classes in the order of their labels.
        train: Pictures to learn from.
        val: Pictures to choose the best epoch with.
        test: Pictures to report on, which training never sees; None if there are none beyond `val`.
        mean: Mean brightness in [0, 1] where the data set has its own, one number for all channels.
        std: Deviation of the brightness, likewise.
        masks: Whether a picture comes with masks, of the kinds of defects in `class_names`, in place of a label.
    """

    class_names: list[str]
    train: Any
    val: Any
    test: Any | None = None
    mean: float | None = None
    std: float | None = None
    masks: bool = False


def stratified_split(labels: Sequence[Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the larger and of the smaller part, each label with the same share in both, to one picture.

    Args:
        labels: What to stratify by, one for each picture.
        fraction: Share of the smaller part, in [0, 1).
        seed: The same seed gives the same split on every machine.
    """
    rng = np.random.default_rng(seed)
    strata: dict[Any, list[int]] = {}
    for index, label in enumerate(labels):
        strata.setdefault(label, []).append(index)
    order = [int(i) for key in sorted(strata) for i in rng.permutation(strata[key])]
    wanted = round(fraction * len(order))
    # Every (1 / fraction)-th picture of the list that is ordered by label: so each label gives its share.
    small = {order[int((k + 0.5) * len(order) / wanted)] for k in range(wanted)}
    return [i for i in range(len(labels)) if i not in small], sorted(small)
