"""What the tables of blocks share: look-up by name, and the entry that switches an attention off."""

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from torch import nn

from ..errors import nearest

__all__ = ["Layer", "look_up", "no_attention", "one_of"]

Layer = Callable[..., nn.Module]  # a class of modules, or a function that makes one
Entry = TypeVar("Entry")


def one_of(name: str, choices: Collection[str], argument: str) -> str:
    """`name`, if it is one of `choices`; else a `ValueError` with `argument`, the nearest and all the choices."""
    if name not in choices:
        raise ValueError(f"unknown {argument} {name!r}{nearest(name, choices)}: choose from {', '.join(choices)}")
    return name


def look_up(table: Mapping[str, Entry], name: str, argument: str) -> Entry:
    """The entry of `table` for `name`; a `ValueError` with `argument` and the choices if there is none."""
    return table[one_of(name, table, argument)]


def no_attention(dim: int, **_: object) -> nn.Module:
    """The entry `"none"` of a table of attentions: every channel passes through."""
    return nn.Identity()
