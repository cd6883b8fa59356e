"""The command line `patnet`."""

import sys
from collections.abc import Sequence

from ..errors import InputError
from .parser import parse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        return parse(sys.argv[1:] if argv is None else argv)()
    except InputError as error:
        # From a loader process the message comes at the end of that process's traceback.
        message = str(error).rsplit("InputError: ", maxsplit=1)[-1]
        print(f"patnet: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("patnet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has ended, which is its right
        return 0
