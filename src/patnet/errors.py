"""The error for input that a user can correct, and checks that raise it."""

import difflib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

__all__ = ["InputError", "nearest", "one_line", "require"]


class InputError(ValueError):
    """Input that cannot be used. The command line prints the error message and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` with the known name most similar to `name`, or an empty string."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def one_line(error: BaseException) -> str:
    """The message of another library's exception, in one line of at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def require(packages: Sequence[str], extra: str, what: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        packages: Names by which the packages are imported.
        extra: Extra of patnet that installs them.
        what: What needs them, the subject of the error message.

    Raises:
        InputError: If a package is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{what} needs {', '.join(missing)}, which {verb} not installed: pip install 'patnet[{extra}]'"
        )
