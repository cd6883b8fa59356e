"""Pictures from people: of limited size and kind, and gone once they are read."""

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..data import IMAGE_SUFFIXES, read_image
from ..errors import InputError

__all__ = ["FORMATS", "read_upload"]

# Of what Pillow reads, the kinds that are pictures and nothing else: PostScript would be run.
FORMATS = tuple(sorted({Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES}))


def read_upload(path: str | os.PathLike, *, max_pixels: int) -> Image.Image:
    """Read a picture as `"RGB"`, as a person sees it, and remove its file.

    Args:
        path: Of the upload.
        max_pixels: Refuse more than so many.

    Raises:
        InputError: With the name of the file alone, if it is no picture of the kinds in `FORMATS`, damaged, or too
            large once unpacked.
    """
    path = Path(path)
    try:
        try:
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
        except UnidentifiedImageError as error:
            problem = "the file is not a picture" if path.stat().st_size else "the file is empty"
            raise InputError(f"{path}: {problem}; give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{path}: {_too_large(max_pixels)}") from error
        except (OSError, ValueError, SyntaxError) as error:  # headers that promise what does not follow
            raise InputError(f"{path}: the picture is damaged or cut short; copy it again") from error
        if width * height > max_pixels:
            raise InputError(f"{path}: {width}x{height} px, {_too_large(max_pixels)}")
        return read_image(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error
    finally:
        path.unlink(missing_ok=True)


def _too_large(max_pixels: int) -> str:
    return f"more than the {max_pixels / 1e6:g} million pixels that are taken; make it smaller"
