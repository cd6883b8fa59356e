"""Files that are whole or not there, and known again."""

import hashlib
import os
import tempfile
from pathlib import Path

__all__ = ["sha256", "write_text"]


def sha256(file: Path) -> str:
    """The digest of a file's bytes, by which it is known again."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write a text file aside and move it into place."""
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=".writing-", delete=False, encoding="utf-8", newline=""
    ) as aside:
        aside.write(text)
    Path(aside.name).chmod(0o644)
    os.replace(aside.name, file)
