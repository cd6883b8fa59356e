"""What a pickle would call on loading, read without loading it."""

import contextlib
import io
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import IO

__all__ = ["is_torchscript", "unsafe_globals"]

# Modules of the classes and functions that torch allows with `weights_only=True`, as far as files of weights need them.
_ALLOWED = {
    *("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter", "collections", "_codecs"),
    *("numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy._core.multiarray"),
}
# A file in torch's format before 1.6 is five pickles in a row, the fourth of them the object.
_MOST_PICKLES = 5


def _members(file: Path) -> list[str]:
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        return archive.namelist()
    return []


def is_torchscript(file: Path) -> bool:
    """Whether a file is a program that `torch.jit.save` wrote."""
    return any(name.endswith("/constants.pkl") for name in _members(file))


def _globals_in(stream: IO[bytes]) -> list[str]:
    """Names of the classes and functions in the pickles of a stream, as far as the pickles are intact."""
    found: list[str] = []
    strings: list[str] = []
    with contextlib.suppress(Exception):  # pickletools raises many types, depending on the byte that is wrong
        for _ in range(_MOST_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return [name for name in found if all(part.isidentifier() for part in name.split("."))]


def unsafe_globals(file: Path) -> list[str]:
    """Classes and functions that loading a file with pickle would call, and that no file of weights needs.

    Args:
        file: A file of `torch.save`, in either of its formats, or a pickle.

    Returns:
        Their names, such as `"posix.system"`; empty for a file of weights, and for a file that is no pickle.
    """
    found: list[str] = []
    pickles = [name for name in _members(file) if name.endswith("data.pkl")]
    with contextlib.suppress(OSError, zipfile.BadZipFile, zlib.error):
        if pickles:
            with zipfile.ZipFile(file) as archive:
                found = _globals_in(io.BytesIO(archive.read(pickles[0])))
        else:
            with file.open("rb") as stream:
                found = _globals_in(stream)
    return [name for name in found if name.rpartition(".")[0] not in _ALLOWED]
