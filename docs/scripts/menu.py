"""A hook of mkdocs: a page that the menu does not name comes last, under "More", so that no page is lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _named(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from _named(item)


def on_config(config: Any) -> Any:
    """The configuration with its menu filled."""
    docs = Path(config["docs_dir"])
    named = {*_named(config["nav"])}
    left = [
        page for page in sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md")) if page not in named
    ]
    if left:
        config["nav"] = [*config["nav"], {"More": left}]
    return config
