"""A hook of mkdocs: a menu entry that names a folder, such as `experiments/`, stands for all of its pages."""

from pathlib import Path
from typing import Any


def _with_pages(entry: Any, docs: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if isinstance(value, list):
        return {title: [_with_pages(item, docs) for item in value]}
    if value.endswith("/"):
        pages = sorted((docs / value).glob("*.md"), key=lambda page: (page.name != "index.md", page.name))
        return {title: [page.relative_to(docs).as_posix() for page in pages]}
    return entry


def on_config(config: Any) -> Any:
    """The configuration with its menu filled."""
    config["nav"] = [_with_pages(entry, Path(config["docs_dir"])) for entry in config["nav"]]
    return config
