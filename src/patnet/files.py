"""Files and directories that are either complete or absent."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(name: str) -> str:
    """A name as text, also if it is not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without those that are blank, and without spaces around them.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start + 1} is not UTF-8; save the file in UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


@contextmanager
def atomic_write(path: Path, hint: str = "choose another path") -> Iterator[Path]:
    """Gives a temporary path to write to; moves what is there to `path` on success and removes it on failure.

    Args:
        path: The file to write or replace; its directory is made if it does not exist.
        hint: What the user can do if the file cannot be written, the end of the error message.

    Raises:
        InputError: If the file cannot be written (`OSError`), for example because the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".writing-"))  # on the same file system
        yield temporary / path.name
        os.replace(temporary / path.name, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_directory(path: Path, hint: str = "choose another path") -> Iterator[Path]:
    """Gives a temporary directory to fill, see `atomic_write`.

    Raises:
        InputError: If `path` exists and is not an empty directory, or the directory cannot be written (`OSError`).
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists and is not an empty directory; {hint}")
    with atomic_write(path, hint) as directory:
        directory.mkdir()
        yield directory


def make_directory(path: Path, hint: str = "choose another --out") -> Path:
    """The directory, made for results before they are computed.

    Raises:
        InputError: If it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, see `atomic_write`."""
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")


def distinct_stems(files: Iterable[Path]) -> list[str]:
    """The name of each file without its suffix; with a number where an earlier one has it: `image`, then `image-2`."""
    stems: dict[str, str] = {}  # by the name that a file system without case would give them
    for file in files:
        names = chain([file.stem], (f"{file.stem}-{number}" for number in count(2)))
        stem = next(name for name in names if name.casefold() not in stems)
        stems[stem.casefold()] = stem
    return list(stems.values())


def check_figure(path: str, option: str) -> None:
    """Check the suffix of a figure.

    Raises:
        InputError: If its suffix is that of no figure.
    """
    if Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"{option} {path}: must be a .png, .pdf or .svg file")


def show_texts(figure: "Figure") -> None:
    """Make a figure show its texts as they are: no formulas between dollars, and also names that are not UTF-8.

    Drawing sets the labels of ticks again, so names there have to be `shown` before.
    """
    texts: Any = figure.findobj(lambda part: hasattr(part, "set_parse_math"))
    for text in texts:
        if "$" in text.get_text():
            text.set_parse_math(False)
        text.set_text(shown(text.get_text()))


def save_figure(figure: "Figure", path: Path, dpi: int = 110) -> Path:
    """Write a figure as an image on a white background, see `atomic_write` and `show_texts`.

    Args:
        figure: The figure.
        path: The file; its suffix sets the format.
        dpi: Resolution in dots per inch.
    """
    show_texts(figure)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=dpi, facecolor="white")
    return path
