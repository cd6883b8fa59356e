"""What the tables of blocks share: look-up by name, and the entry that switches an attention off."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from ..errors import nearest

__all__ = ["look_up", "no_attention"]

Entry = TypeVar("Entry")


def look_up(table: Mapping[str, Entry], name: str, argument: str) -> Entry:
    """The entry of `table` under `name`; a `ValueError` that names `argument` and the choices if there is none."""
    if name not in table:
        raise ValueError(f"unknown {argument} {name!r}{nearest(name, table)}: choose from {', '.join(table)}")
    return table[name]


def no_attention(dim: int, **_: object) -> nn.Module:
    """The entry `"none"` of a table of attentions: every channel passes through."""
    return nn.Identity()
