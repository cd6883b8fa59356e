"""The command line `patnet`."""

import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from ..errors import InputError
from .parser import Command, parse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, script: ModuleType | None = None) -> int:
    """Run the command line; give its exit code: 0, 2 for bad input, 130 after Ctrl-C and SIGTERM.

    Training handles these two itself.

    Args:
        argv: The words after the command's name; by default those of the process.
        script: A module outside of the package that is written as a command's module is; by default `patnet`.
    """
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # it keeps what Ctrl-C keeps
    try:
        if script is not None:
            return script.run(**Command(script.NAME, script).parse(argv))
        return parse(argv)()
    except InputError as error:
        print(f"patnet: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has ended, which is its right
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"patnet: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("patnet: interrupted", file=sys.stderr)
        return 130
