"""What commands print on a terminal or into a file: tables, and lines as they are."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def print_lines(*lines: Any) -> None:
    """Print lines without wrapping or markup."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in lines:
        console.print(str(line))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1, title: str = "") -> None:
    """Print a table whose first `left` columns are text and the others numbers; rows of a file are not wrapped."""
    if title:
        print_lines(title)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        text = i < left
        table.add_column(escape(heading), justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else escape(str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
