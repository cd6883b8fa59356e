"""Images: finding and reading files, data sets of them, and transforms to tensors."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic, iglob
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class UnreadableImage(InputError):
    """An image that cannot be read: its path, or its name in its data set, and the reason on one line."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def convert_image(image: Image.Image, mode: str = "RGB", *, upright: bool = True) -> Image.Image:
    """`image` as `"RGB"` or `"L"`, with transparency over white and 16 bits scaled to 8.

    Args:
        image: An image.
        mode: `"RGB"` or `"L"`.
        upright: Whether to rotate it as its EXIF orientation says.

    Raises:
        ValueError: If the pixels are floating-point numbers, which have no standard range.
    """
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which PIL reads as I;16 or I, and clips on conversion
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_image(
    source: str | os.PathLike | BinaryIO, mode: str = "RGB", *, name: str | None = None, upright: bool = True
) -> Image.Image:
    """Read an image as `"RGB"` or `"L"`, see `convert_image`.

    Args:
        source: Path, or opened file.
        mode: `"RGB"` or `"L"`.
        name: What error messages call the image, by default its path.
        upright: Whether to rotate it as its EXIF orientation says.

    Raises:
        UnreadableImage: If the file is missing, empty, truncated, not an image, or a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return convert_image(image, mode, upright=upright)
    except Exception as error:  # Pillow's decoders raise a dozen types, depending on which byte is wrong
        raise UnreadableImage(name or str(source), _reason(source, error)) from error


def image_size(file: Path) -> tuple[int, int]:
    """Width and height in px of an image file, upright as its EXIF orientation says, from its first bytes.

    Raises:
        UnreadableImage: If it is no image.
    """
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except Exception as error:
        raise UnreadableImage(file, _reason(file, error)) from error


def _reason(source: Any, error: Exception) -> str:
    """What is wrong with an image, from the type of Pillow's error."""
    if isinstance(error, FileNotFoundError):
        return "no such image"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        return f"refused as a decompression bomb, above {limit:,} pixels; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        empty = isinstance(source, str | os.PathLike) and Path(source).stat().st_size == 0
        problem = "is empty" if empty else "is not an image"
        return f"the file {problem}; give a PNG, JPEG or another format that Pillow reads"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"the image is damaged or cannot be converted ({reason})"


def _walk(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The image files below a folder, ordered by name; memory holds the names of one folder at a time.

    Links are followed, except to a folder that holds them.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir():
            if os.path.realpath(entry.path) not in above:
                yield from _walk(entry.path, above)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield Path(entry.path)


def find_images(patterns: Sequence[str]) -> Iterator[Path]:
    """The image files that files, folders and glob patterns name, each once, in the order given.

    Raises:
        InputError: If a name matches nothing.
    """
    seen: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        files: Iterator[Path]
        if path.is_dir():
            files, problem = _walk(path), f"the folder holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        elif has_magic(pattern) and not path.exists():
            found = map(Path, sorted(iglob(pattern, recursive=True)))
            files, problem = (p for p in found if p.is_file()), "no file matches the pattern"
        else:
            files, problem = iter([path] if path.exists() else []), "no such image"
        first = next(files, None)
        if first is None:
            raise InputError(f"{pattern}: {problem}")
        for file in chain([first], files):
            if file not in seen:
                yield file
            if len(patterns) > 1:
                seen.add(file)


@dataclass(eq=False)
class ImageFiles(Dataset):
    """Image files with labels; items are `(PIL image, label)`.

    Args:
        samples: `(path, label)` of each image.
        mode: `"RGB"` or `"L"`.
        cached: Grey pixels `(H, W)` by path, which are taken instead of the files.
    """

    samples: list[tuple[Path, int]]
    mode: str = "RGB"
    cached: Mapping[Path, np.ndarray] | None = None

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
        labelled: False for images without classes, whose labels mean nothing; the class names are then a teacher's.
    """

    class_names: list[str]
    train: Any
    val: Any
    test: Any | None = None
    mean: float | None = None
    std: float | None = None
    labelled: bool = True


@dataclass(frozen=True)
class AboutData:
    """What a model card says of a data set: `text` and `limits` in sentences, `licence` as the Hub calls it, BibTeX."""

    title: str
    text: str
    licence: str
    limits: str
    citation: str


def stratified_split(labels: Sequence[Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the larger and of the smaller part, in which each label has the same share up to one image.

    The larger part has every label.

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
    for indices in strata.values():
        if small.issuperset(indices):
            small.discard(indices[0])
    return [i for i in range(len(labels)) if i not in small], sorted(small)


def split_off(dataset: ImageFiles, strata: Sequence[Any], fraction: float, seed: int) -> tuple[ImageFiles, Any]:
    """A data set without a stratified share of its images, and that share; None if it has no images."""
    large, small = stratified_split(strata, fraction, seed)
    return dataset.subset(large), dataset.subset(small) if small else None


def eval_transform(data_config: Mapping[str, Any], *, normalise: bool = True) -> Callable:
    """The preprocessing of a model, from what `timm.data.resolve_data_config` gives: resize, centre crop, normalise.

    Without `normalise` it gives tensors of bytes, a quarter of the size, for `normalise` to finish.
    """
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    given = {key: data_config[key] for key in keys if key in data_config}
    to_tensor = create_transform(is_training=False, normalize=normalise, **given)
    mode = "L" if data_config["input_size"][0] == 1 else "RGB"
    return v2.Compose([partial(convert_image, mode=mode), to_tensor])


def normalise(images: Tensor, data_config: Mapping[str, Any]) -> Tensor:
    """Images `(N, C, H, W)` of bytes as the network takes them."""
    return v2.functional.normalize(images.float() / 255, list(data_config["mean"]), list(data_config["std"]))


def train_transform(
    data_config: Mapping[str, Any],
    *,
    scale: Sequence[float] = (0.08, 1.0),
    hflip: float = 0.5,
    vflip: float = 0.0,
    rot90: float = 0.0,
    color_jitter: float = 0.4,
    aa: str | None = None,
    reprob: float = 0.0,
) -> Callable:
    """Random augmentation, then the same normalisation as in evaluation.

    Args:
        data_config: As `timm.data.resolve_data_config` gives it.
        scale: Smallest and largest share of the image's area that a random-resized crop keeps.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        rot90: Probability of a rotation by 90 degrees. With `hflip`, `vflip` and `rot90` at 0.5, the eight symmetries
            of a square are equally probable.
        color_jitter: Strength of random brightness, contrast and saturation.
        aa: AutoAugment policy of timm, for example `"rand-m7-mstd0.5-inc1"`; replaces `color_jitter`.
        reprob: Probability of random erasing.
    """
    augment = create_transform(
        is_training=True,
        **{key: data_config[key] for key in ("input_size", "interpolation", "mean", "std")},
        scale=(scale[0], scale[1]),
        ratio=(3 / 4, 4 / 3) if scale[0] < 0.5 else (1.0, 1.0),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        auto_augment=aa,
        re_prob=reprob,
    )
    rotate = [v2.RandomApply([v2.RandomRotation((90, 90), expand=True)], p=rot90)] if rot90 else []
    mode = "L" if data_config["input_size"][0] == 1 else "RGB"
    return v2.Compose([partial(convert_image, mode=mode), *rotate, augment])
