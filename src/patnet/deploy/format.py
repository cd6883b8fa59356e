"""What a format is, and what it is asked to write."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.export import Dim

from ..errors import InputError
from .info import ExportInfo

__all__ = ["LEAST_SIZE", "Format", "InHalf", "Request", "dynamic_shapes", "quietly", "require"]


# Of a file for any size, in px: at 32 the last map is 1x1, which tracing takes for a constant.
LEAST_SIZE = 64


class InHalf(nn.Module):
    """A network in 16 bits that takes and gives 32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of pictures, both float32."""
        return self.model(pictures.half()).float()


@dataclass(frozen=True)
class Request:
    """What to export for.

    Attributes:
        info: What the file shall say of itself.
        example: Pictures `(N, C, H, W)` of the shape to trace with, preprocessed.
        calibration: Pictures to calibrate int8 with, `(M, C, H, W)`.
    """

    info: ExportInfo
    example: Tensor
    calibration: Tensor | None = None

    def calibration_batches(self) -> Iterator[Tensor]:
        """The calibration pictures, in batches as the network takes them."""
        assert self.calibration is not None
        step = self.info.batch or 1
        for start in range(0, len(self.calibration) - step + 1, step):
            yield self.calibration[start : start + step]


class Format(NamedTuple):
    """An entry of `FORMATS`.

    Attributes:
        suffix: Of the file.
        precisions: That it can be written in.
        packages: That writing and running it take.
        extra: Of this package that brings them.
        write: Writes the network, with its `ExportInfo` inside, at a path.
        load: Gives a callable from pictures to logits, and the `ExportInfo`, or None if the file holds none.
    """

    suffix: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    write: Callable[[nn.Module, Path, Request], None]
    load: Callable[[Path, int | None], tuple[Callable[[Tensor], Tensor], ExportInfo | None]]


@contextlib.contextmanager
def quietly(logger_name: str) -> Iterator[None]:
    """Without Python's warnings, and those of a logger."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def require(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Check that packages are installed.

    Raises:
        InputError: If one is not, with what to install.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {' and '.join(missing)}, not installed here: pip install 'patnet[{extra}]'")


def dynamic_shapes(batch: bool, size: bool) -> Any:
    """The `dynamic_shapes` of torch.export for a network that takes pictures, or None if all is fixed."""
    dims: dict[int, Any] = {}
    if batch:
        dims[0] = Dim("batch", min=1, max=4096)
    if size:
        dims |= {2: Dim("height", min=LEAST_SIZE, max=8192), 3: Dim("width", min=LEAST_SIZE, max=8192)}
    return (dims,) if dims else None
