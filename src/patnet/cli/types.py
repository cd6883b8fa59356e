"""Types of options, and how error messages name them."""

from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

from jsonargparse import typing as restricted

from .parser import members

__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Probability", "describe"]

if TYPE_CHECKING:  # jsonargparse makes its types at run time, where no type checker sees them
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    Probability: TypeAlias = float
else:
    PositiveInt = restricted.PositiveInt
    NonNegativeInt = restricted.NonNegativeInt
    PositiveFloat = restricted.PositiveFloat
    NonNegativeFloat = restricted.NonNegativeFloat
    Probability = restricted.ClosedUnitInterval

NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    Any: "any value",
    PositiveInt: "an integer above 0",
    NonNegativeInt: "an integer of at least 0",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number of at least 0",
    Probability: "a number in [0, 1]",
}


def describe(hint: Any) -> str:
    """What a value of a type is, in words: `"an integer above 0 or auto"`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if len(members(hint)) > 1:
        return " or ".join(describe(member) for member in members(hint))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"{len(arguments)} values, each {describe(arguments[0])}"
    if origin is list:
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict or hint is dict:
        return "a mapping of names to values"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))
