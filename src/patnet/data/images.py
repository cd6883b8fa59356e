"""Finding image files, and reading them the way an image viewer shows them."""

import os
import warnings
from collections.abc import Iterator, Sequence
from glob import has_magic, iglob
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class UnreadableImage(InputError):
    """An image that cannot be read: its path, or its name in its data set, and the reason on one line."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def convert_image(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """`image` as `"RGB"` or `"L"`: rotated as its EXIF orientation says, transparency over white, 16 bits scaled to 8.

    Raises:
        ValueError: If the pixels are floating-point numbers, which have no standard range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which PIL reads as I;16 or I, and clips on conversion
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_image(source: str | os.PathLike | BinaryIO, mode: str = "RGB", *, name: str | None = None) -> Image.Image:
    """Read an image as `"RGB"` or `"L"`, see `convert_image`.

    Args:
        source: Path, or opened file.
        mode: `"RGB"` or `"L"`.
        name: What error messages call the image, by default its path.

    Raises:
        UnreadableImage: If the file is missing, empty, truncated, not an image, or a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return convert_image(image, mode)
    except Exception as error:  # Pillow's decoders raise a dozen types, depending on which byte is wrong
        raise UnreadableImage(name or str(source), _reason(source, error)) from error


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


def _walk(folder: str | Path) -> Iterator[Path]:
    """The image files below a folder, ordered by name; memory holds the names of one folder at a time."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
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
