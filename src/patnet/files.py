"""Files that are whole or not there, and known again."""

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["save_figure", "save_small", "sha256", "write_bytes", "write_text"]


def sha256(file: Path) -> str:
    """The digest of a file's bytes, by which it is known again."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write a text file aside and move it into place."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file aside and move it into place."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".writing-", delete=False) as aside:
        aside.write(data)
    Path(aside.name).chmod(0o644)
    os.replace(aside.name, file)


def save_figure(figure: "Figure", file: Path, dpi: int = 110) -> Path:
    """Write a picture aside and move it into place; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=file.parent, prefix=".writing-", suffix=file.suffix)
    os.close(handle)
    figure.savefig(aside, dpi=dpi, facecolor="white")
    Path(aside).chmod(0o644)
    os.replace(aside, file)
    return file


def save_small(picture: Image.Image, file: Path) -> None:
    """Write a drawing as PNG with 256 colours, in which it takes a third of the space, and move it into place."""
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    write_bytes(file, buffer.getvalue())
