"""Finding pictures, and reading them as a person sees them."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from glob import has_magic, iglob
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

__all__ = ["IMAGE_SUFFIXES", "as_seen", "read_image", "walk_pictures"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def as_seen(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """`image` as `"RGB"` or `"L"`: turned as its EXIF says, transparency over white, 16 bits scaled to 8.

    Raises:
        ValueError: If the pixels are floating-point, whose brightness no convention fixes.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed brightness, convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which PIL reads as I;16 or I, and clips on conversion
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_image(path: str | os.PathLike, mode: str = "RGB") -> Image.Image:
    """Read a picture as `"RGB"` or `"L"`.

    Raises:
        InputError: If the file is missing, empty, cut short, not a picture, or unpacks to a decompression bomb.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return as_seen(image, mode)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: refused as a decompression bomb, above {Image.MAX_IMAGE_PIXELS or 0:,} pixels; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        problem = "is empty" if path.stat().st_size == 0 else "is not a picture"
        raise InputError(f"{path}: the file {problem}; give a PNG, JPEG or another format that Pillow reads") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a picture") from error
    except Exception as error:  # Pillow's decoders raise a dozen types, by the byte that is wrong
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: the picture is damaged or cut short ({reason}); copy it again") from error


def _walk(folder: str | Path) -> Iterator[Path]:
    """The picture files below a folder, in the order of their names, with no more in memory than a folder's names."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield Path(entry.path)


def walk_pictures(patterns: Sequence[str]) -> Iterator[Path]:
    """The picture files that names of files and folders and glob patterns mean, each once, in that order.

    Raises:
        InputError: If a name means nothing.
    """
    seen: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        files: Iterable[Path]
        if path.is_dir():
            files = _walk(path)
            problem = f"{path}: the folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})"
        elif path.exists():
            files, problem = [path], ""
        elif has_magic(pattern):
            files = (p for p in map(Path, sorted(iglob(pattern, recursive=True))) if p.is_file())
            problem = f"{pattern}: no file matches the pattern"
        else:
            raise InputError(f"{path}: no such picture")
        found = False
        for file in files:
            found = True
            if file in seen:
                continue
            if len(patterns) > 1:
                seen.add(file)
            yield file
        if not found:
            raise InputError(problem)
