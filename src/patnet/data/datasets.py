"""What a data set gives: images with labels, in a training, a validation and perhaps a test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from ..errors import InputError
from .images import IMAGE_SUFFIXES, read_image


class ImageFiles(Dataset):
    """Image files with labels; items are `(PIL image, label)`.

    Args:
        samples: `(path, label)` of each image.
        mode: `"RGB"` or `"L"`.
        cached: Grey pixels `(H, W)` by path, which are taken instead of the files.
    """

    def __init__(
        self,
        samples: Sequence[tuple[Path, int]],
        mode: str = "RGB",
        cached: Mapping[Path, np.ndarray] | None = None,
    ) -> None:
        self.samples, self.mode, self.cached = list(samples), mode, cached

    @property
    def labels(self) -> list[int]:
        """The label of each image."""
        return [label for _, label in self.samples]

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """The same data set with some of the images."""
        return ImageFiles([self.samples[i] for i in indices], self.mode, self.cached)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        if self.cached:
            return Image.fromarray(self.cached[path]).convert(self.mode), label
        return read_image(path, self.mode), label


@dataclass(frozen=True)
class DataSplits:
    """The splits of a data set; items are `(PIL image, label)`, and loaders apply the transforms.

    Attributes:
        class_names: Names of the classes in the order of their labels.
        train: Training images.
        val: Validation images, which choose the best epoch; None if there are none.
        test: Test images, held out from training; None if there are none beyond `val`.
        mean: Mean brightness of the training images in [0, 1], one number for all channels; None for ImageNet's.
        std: Standard deviation of the brightness, likewise.
    """

    class_names: list[str]
    train: Any
    val: Any
    test: Any | None = None
    mean: float | None = None
    std: float | None = None


def stratified_split(labels: Sequence[Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the larger and of the smaller part, in which each label has the same share up to one image.

    Args:
        labels: Label of each image, or whatever else to stratify by.
        fraction: Share of the smaller part, in [0, 1).
        seed: Random seed; the same one gives the same split on every machine.
    """
    rng = np.random.default_rng(seed)
    strata: dict[Any, list[int]] = {}
    for index, label in enumerate(labels):
        strata.setdefault(label, []).append(index)
    order = [int(i) for key in sorted(strata) for i in rng.permutation(strata[key])]
    count = round(fraction * len(order))
    # Every (1 / fraction)-th image of the list that is ordered by label, so each label gives its share.
    small = {order[int((k + 0.5) * len(order) / count)] for k in range(count)}
    return [i for i in range(len(labels)) if i not in small], sorted(small)


def split_off(dataset: ImageFiles, strata: Sequence[Any], fraction: float, seed: int) -> tuple[ImageFiles, Any]:
    """A data set without a stratified share of its images, and that share; None if it has no images."""
    large, small = stratified_split(strata, fraction, seed)
    return dataset.subset(large), dataset.subset(small) if small else None


def _class_folders(root: Path) -> ImageFolder:
    """The images below `root`, in one folder for each class."""
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir()]
    except OSError as error:
        raise InputError(f"{root}: the folder cannot be read ({error.strerror or error})") from error
    if not folders:
        raise InputError(f"{root}: holds no class folders; put the images of each class into a folder of its name")

    def is_image(name: str) -> bool:
        return Path(name).suffix.lower() in IMAGE_SUFFIXES

    found = ImageFolder(str(root), allow_empty=True, is_valid_file=is_image)
    for name, label in found.class_to_idx.items():
        if label not in found.targets:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"{root / name}: the class has no images; add some ({suffixes}) or remove the folder")
    return found


def load_folder(root: Path, *, mode: str = "RGB", val_fraction: float = 0.1, seed: int = 0) -> DataSplits:
    """Images in class folders: in `train/`, `val/` (or `validation/`) and perhaps `test/`, or in `root` itself.

    Where there is no validation split, a stratified share of the training images is split off.

    Raises:
        InputError: If a folder is missing or empty, a class has no images, or a split has classes that training lacks.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {problem}; give a folder of class folders")
    names = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
    parts = {part: root / name for part in names for name in names[part] if (root / name).is_dir()}
    if parts and "train" not in parts:
        held_out = next(iter(parts.values()))
        raise InputError(f"{root}: has {held_out.name}/ but no train/; add it, or give the class folders alone")
    trained = _class_folders(parts.pop("train", root))
    splits: dict[str, Any] = {}
    for part, folder in parts.items():
        found = _class_folders(folder)
        for name in found.classes:
            if name not in trained.class_to_idx:
                raise InputError(f"{folder / name}: train/ has no class of this name; add it there or remove it here")
        labels = [trained.class_to_idx[name] for name in found.classes]
        splits[part] = ImageFiles([(Path(path), labels[label]) for path, label in found.samples], mode)
    train = ImageFiles([(Path(path), label) for path, label in trained.samples], mode)
    if "val" not in splits:
        train, splits["val"] = split_off(train, train.labels, val_fraction, seed)
    return DataSplits(trained.classes, train, **splits)
