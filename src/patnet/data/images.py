"""Reading pictures as a person sees them."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

__all__ = ["IMAGE_SUFFIXES", "as_seen", "read_image"]

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
