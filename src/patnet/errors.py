"""The error for what a user can put right: one sentence with the file or option, the problem and the remedy."""

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "nearest"]


class InputError(ValueError):
    """Input that cannot be used. The command line prints it as one sentence and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name most like `name`, or an empty string."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
