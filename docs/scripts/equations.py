"""A hook of mkdocs: equations become MathML, which browsers draw themselves, without a script from elsewhere."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $...$ and $$...$$, which GitHub draws as it is.
EQUATION = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</\1>', re.DOTALL
)


def _mathml(match: re.Match[str]) -> str:
    block = match["block"] is not None
    latex = html.unescape(match["block"] if block else match["inline"]).strip()
    return convert(latex, display="block" if block else "inline")


def on_page_content(html: str, **_: Any) -> str:
    """The page with its equations as MathML."""
    return EQUATION.sub(_mathml, html)
