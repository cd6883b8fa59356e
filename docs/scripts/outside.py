"""Looks for what a built site would load from another host: python docs/scripts/outside.py site.

Links that a reader may follow are no such thing; scripts, styles, images and frames are.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
# What a browser fetches by itself, by element.
LOADED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
# Links of the head that are for search engines and readers, and not fetched.
QUIET = {"alternate", "author", "canonical", "license", "next", "prev"}
# The theme fetches this script where a page has a diagram of it.
FETCHED_FOR = {"mermaid"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        urls = [given[name] for name in LOADED.get(tag, ()) if name in given]
        if tag == "link" and not {*given.get("rel", "").lower().split()} & QUIET:
            urls.append(given.get("href", ""))
        self.found += [f"{tag} {url}" for url in urls if ELSEWHERE.match(url)]
        self.found += _in_style(given.get("style", ""))
        self.found += [f"a diagram of {name}" for name in FETCHED_FOR & {*given.get("class", "").split()}]


def _in_style(text: str) -> list[str]:
    urls = re.findall(r"""(?:url\(|@import\s)\s*["']?(?!url\()([^"')\s;]+)""", text)
    return [f"style {url}" for url in urls if ELSEWHERE.match(url)]


def outside(site: Path) -> list[str]:
    """What the pages, styles and drawings below `site` would load from elsewhere, each with its file."""
    found = []
    for file in sorted(site.rglob("*")):
        if file.suffix not in (".html", ".css", ".svg"):
            continue
        text = file.read_text(encoding="utf-8")
        loaded = _in_style(text)
        if file.suffix != ".css":
            page = _Page()
            page.feed(text)
            loaded = page.found + [
                entry for style in re.findall(r"<style.*?</style>", text, re.S) for entry in _in_style(style)
            ]
        found += [f"{file.relative_to(site)}: {entry}" for entry in loaded]
    return found


if __name__ == "__main__":
    if not (Path(sys.argv[1]) / "index.html").is_file():
        sys.exit(f"{sys.argv[1]}: no site; mkdocs build makes one")
    problems = outside(Path(sys.argv[1]))
    print("\n".join(problems) or "Nothing would be loaded from elsewhere.")
    sys.exit(bool(problems))
