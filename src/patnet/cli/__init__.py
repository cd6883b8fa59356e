"""The command line `patnet`."""

import sys
from collections.abc import Sequence

from rich.console import Console

from ..errors import InputError
from .parser import build_parser, parse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        command, options = parse(build_parser(words[0] if words else None), words)
        return command(**options)
    except InputError as error:
        # From a worker process the sentence comes at the end of that process's traceback.
        errors.print(f"patnet: {str(error).rsplit('InputError: ', maxsplit=1)[-1].strip()}")
        return 2
    except KeyboardInterrupt:
        errors.print("patnet: interrupted")
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, which is its right
        return 0
