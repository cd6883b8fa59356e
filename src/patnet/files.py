"""Files that are whole or not there."""

import os
import tempfile
from pathlib import Path

__all__ = ["write_text"]


def write_text(file: Path, text: str) -> None:
    """Write a text file aside and move it into place."""
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=".writing-", delete=False, encoding="utf-8", newline=""
    ) as aside:
        aside.write(text)
    Path(aside.name).chmod(0o644)
    os.replace(aside.name, file)
