"""What the tables of blocks share: look-up by name, and the entry that switches an attention off."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

__all__ = ["look_up", "nearest", "no_attention"]

Entry = TypeVar("Entry")


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name most like `name`, or an empty string."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def look_up(table: Mapping[str, Entry], name: str, argument: str) -> Entry:
    """The entry of `table` under `name`; a `ValueError` that names `argument` and the choices if there is none."""
    if name not in table:
        raise ValueError(f"unknown {argument} {name!r}{nearest(name, table)}: choose from {', '.join(table)}")
    return table[name]


def no_attention(dim: int, **_: object) -> nn.Module:
    """The entry `"none"` of a table of attentions: every channel passes through."""
    return nn.Identity()
