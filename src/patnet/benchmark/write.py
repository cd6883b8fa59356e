"""The files of a result: JSON, CSV, Markdown and, where matplotlib is installed, a picture."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from .report import to_csv, to_markdown

__all__ = ["check_folder", "redraw", "write"]


def check_folder(out: Path) -> None:
    """Make the folder, before anything is measured for it.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        write_text(out / ".writing-check", "")
        (out / ".writing-check").unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give another --out") from error


def write(result: dict[str, Any], out: Path, name: str = "benchmarks") -> list[Path]:
    """Write `NAME.json`, `NAME.csv`, `NAME.md` and `images/NAME.png`; give the files that were written.

    Args:
        result: As `Result.as_dict` gives it.
        out: Folder.
        name: Of the files.

    Raises:
        InputError: If the folder cannot be written.
    """
    check_folder(out)
    files = [out / f"{name}{suffix}" for suffix in (".json", ".csv", ".md")]
    picture = None
    if find_spec("matplotlib") is not None:
        from .figures import draw, save

        figure = draw(result)
        if figure is not None:
            picture = save(figure, out / "images" / f"{name}.png")
    shown = f"images/{name}.png" if picture else None
    texts = (json.dumps(result, indent=1) + "\n", to_csv(result), to_markdown(result, shown))
    for file, text in zip(files, texts, strict=True):
        write_text(file, text)
    return [*files, *([picture] if picture else [])]


def redraw(file: Path, out: Path, name: str = "benchmarks") -> list[Path]:
    """Write CSV, Markdown and picture of a result that was measured before, perhaps where matplotlib is missing.

    Raises:
        InputError: If the file holds no result.
    """
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
        result["rows"], result["ratios"], result["machine"]["device"]
    except OSError as error:
        raise InputError(f"--redraw {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--redraw {file}: holds no result of patnet bench") from error
    return write(result, out, name)
