"""A hook of mkdocs: a menu entry that names a folder, such as `experiments/`, includes all of its pages.

A page that the menu does not name at all comes last, under "More", so that no page is lost.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _pages(folder: Path) -> list[Path]:
    """The pages below a folder, its index first, and its own before those of folders in it."""
    return sorted(folder.rglob("*.md"), key=lambda page: (page.name != "index.md", len(page.parts), page))


def _filled(entry: Any, docs: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if isinstance(value, list):
        return {title: [_filled(item, docs) for item in value]}
    if value.endswith("/"):
        return {title: [page.relative_to(docs).as_posix() for page in _pages(docs / value)]}
    return entry


def _named(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from _named(item)


def on_config(config: Any) -> Any:
    """The configuration with its menu filled."""
    docs = Path(config["docs_dir"])
    menu = [_filled(entry, docs) for entry in config["nav"]]
    named = {*_named(menu)}
    left = [
        page for page in sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md")) if page not in named
    ]
    config["nav"] = [*menu, {"More": left}] if left else menu
    return config
