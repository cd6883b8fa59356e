"""Uploaded images: of limited size and format, and removed as soon as they are read."""

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..data import IMAGE_SUFFIXES, UnreadableImage, read_image

# Of Pillow's formats those of images only: it would run a PostScript program.
FORMATS = tuple(sorted({Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES}))


def read_upload(path: str | os.PathLike, *, max_pixels: int) -> Image.Image:
    """Read an uploaded image as `"RGB"`, see `patnet.data.read_image`, and remove its file.

    Raises:
        UnreadableImage: With the name of the file without its folder, if it has no format of `FORMATS`, is damaged, or
            has too many pixels.
    """
    file = Path(path)
    limit = f"above the limit of {max_pixels / 1e6:g} million pixels; make it smaller"
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImage(file.name, f"{width}x{height} px is {limit}")
        return read_image(file, name=file.name)
    except UnidentifiedImageError as error:
        problem = "is not an image" if file.stat().st_size else "is empty"
        raise UnreadableImage(file.name, f"the file {problem}; give {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(file.name, f"the image is {limit}") from error
    except (OSError, SyntaxError) as error:  # of Pillow, for headers that contradict the file
        raise UnreadableImage(file.name, "the image is damaged or truncated; copy it again") from error
    finally:
        file.unlink(missing_ok=True)
