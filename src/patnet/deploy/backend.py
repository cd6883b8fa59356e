"""What a backend is: a runtime that runs a network in memory and, if it has a file format, exports it."""

import contextlib
import copy
import json
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..errors import InputError, one_line, require

__all__ = [
    "DTYPES",
    "KEY",
    "MIN_DYNAMIC_SIZE",
    "Backend",
    "ExportInfo",
    "HalfPrecision",
    "Profile",
    "Request",
    "Runner",
    "common_precisions",
    "computed_in",
    "quiet",
    "sum_by_operation",
]

# Key of the metadata in an exported file.
KEY = "patnet"

# Smallest side of the images in px for a file that takes any size: at 32 px the last feature map is 1x1, and tracing
# takes a dimension of 1 as constant.
MIN_DYNAMIC_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """The metadata of an exported file, kept inside it as JSON under the key `patnet`.

    Attributes:
        backend: Name in `BACKENDS`.
        precision: One of the backend's precisions; images and logits are float32 always.
        batch_size: Images per call; None for any number.
        img_size: Height and width of the images in px; None for any of at least 64.
        in_chans: Channels of the images.
        fused: Whether the norms were folded into the convolutions.
        model: Name of the architecture.
        source: Run directory, checkpoint or model that the weights come from.
        label_names: Names of the classes, in the order of the logits.
        data_config: Preprocessing, as `timm.data.resolve_data_config` gives it.
        pretrained: False for random weights.
        threshold: The decision threshold of a class, the fields of `patnet.models.Threshold`; None for none.
        versions: Versions of patnet, torch and the packages that wrote the file.
    """

    backend: str
    precision: str = "fp32"
    batch_size: int | None = 1
    img_size: tuple[int, int] | None = None
    in_chans: int = 3
    fused: bool = True
    model: str = ""
    source: str = ""
    label_names: list[str] = field(default_factory=list)
    data_config: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    threshold: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def mismatch(self, images: Tensor) -> str:
        """What does not fit in the shape of images `(N, C, H, W)`, or an empty string."""
        given = "x".join(map(str, images.shape))
        if images.dim() != 4 or images.shape[1:] != (self.in_chans, *(self.img_size or images.shape[2:])):
            size = "x".join(map(str, self.img_size)) if self.img_size else "HxW"
            return f"takes images of shape Nx{self.in_chans}x{size}, not {given}"
        if self.img_size is None and min(images.shape[2:]) < MIN_DYNAMIC_SIZE:
            return f"takes images of at least {MIN_DYNAMIC_SIZE}x{MIN_DYNAMIC_SIZE} px, not {given}"
        return ""

    def to_json(self) -> str:
        """The metadata as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ExportInfo":
        """The metadata from the text that `to_json` gave.

        Raises:
            ValueError: If the text is something else.
        """
        try:
            fields = json.loads(text)
            size = fields.pop("img_size")
            return cls(img_size=None if size is None else (int(size[0]), int(size[1])), **fields)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"its metadata is not that of an exported network ({error})") from error


@dataclass(frozen=True)
class Request:
    """What a backend has to write, prepare or profile.

    Attributes:
        info: The metadata of the file; it also says for which precision, batch size and image size.
        example: Preprocessed images `(N, C, H, W)` to trace with.
        calibration: Preprocessed images `(M, C, H, W)` to calibrate int8 with.

    Raises:
        InputError: If int8 is requested with fewer calibration images than a batch has.
    """

    info: ExportInfo
    example: Tensor
    calibration: Tensor | None = None

    def __post_init__(self) -> None:
        needed = self.info.batch_size or 1
        if self.info.precision == "int8" and (self.calibration is None or len(self.calibration) < needed):
            raise InputError(f"int8 needs at least {needed} calibration images")

    @property
    def precision(self) -> str:
        """The precision to compute in."""
        return self.info.precision

    def calibration_batches(self) -> Iterator[Tensor]:
        """The calibration images, in batches of the size that the file takes."""
        assert self.calibration is not None
        size = self.info.batch_size or 1
        return (batch for batch in self.calibration.split(size) if len(batch) == size)

    def dynamic_shapes(self) -> Any:
        """The `dynamic_shapes` argument of torch.export; None if all dimensions are fixed."""
        dims: dict[int, Any] = {}
        if self.info.batch_size is None:
            dims[0] = Dim("batch", min=1, max=4096)
        if self.info.img_size is None:
            dims |= {i: Dim(name, min=MIN_DYNAMIC_SIZE, max=8192) for i, name in ((2, "height"), (3, "width"))}
        return (dims,) if dims else None


DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class HalfPrecision(nn.Module):
    """A network in float16 or bfloat16 whose images and logits are float32."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.model = copy.deepcopy(model).to(DTYPES[precision])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.model(images.to(DTYPES[self.precision])).float()


@dataclass(frozen=True)
class Runner:
    """A network in a runtime, called with images `(N, C, H, W)`.

    Attributes:
        run: Computes the logits.
        computed_in: Precision in which the runtime computes the convolutions, `""` if it does not say.
    """

    run: Callable[[Tensor], Any]
    computed_in: str = ""

    def __call__(self, images: Tensor) -> Any:
        """Logits of images, or a list of feature maps if the network gives these."""
        return self.run(images)


@dataclass(frozen=True)
class Profile:
    """Where the time of one call goes.

    Attributes:
        operations: Time in ms and number of runs of each operation, the longest first.
        precision: The precision that was requested.
        computed_in: The precision in which the runtime computed the convolutions, `""` if it does not say.
    """

    operations: dict[str, tuple[float, float]]
    precision: str
    computed_in: str


def sum_by_operation(events: Iterable[tuple[str, float, int]], calls: int) -> dict[str, tuple[float, float]]:
    """The operations of a `Profile` from the name, time in ms and number of runs of each event in several calls."""
    total: dict[str, tuple[float, float]] = {}
    for name, ms, runs in events:
        before = total.get(name, (0.0, 0.0))
        total[name] = before[0] + ms / calls, before[1] + runs / calls
    return dict(sorted(total.items(), key=lambda item: -item[1][0]))


class Backend:
    """A runtime. A new one is a subclass and an entry in `BACKENDS`.

    With a file format it implements `write` and `load`; without one it has `suffix = None` and implements `prepare`.
    All other methods work for any backend.

    Attributes:
        name: Its key in `BACKENDS`.
        title: Its name in tables and figures.
        suffix: Suffix of the exported file, None without a file format.
        companions: Suffixes of the files that are written with it.
        dynamic: Whether a file may take any number of images and any image size.
        precisions: Precisions that it runs and writes.
        packages: Modules that it imports.
        extra: Extra of this package that installs them.
        devices: Devices that it runs on.
        any_layout: Whether it computes in the memory format of the network.
        bench_on: Devices on which `patnet bench` measures it if no backends are named.
        forms: Forms of a network that it runs, `fused` and `unfused`.
    """

    name: str
    title: str
    suffix: str | None = None
    companions: tuple[str, ...] = ()
    dynamic: bool = True
    precisions: tuple[str, ...] = ("fp32",)
    packages: tuple[str, ...] = ()
    extra: str = ""
    devices: tuple[str, ...] = ("cpu",)
    any_layout: bool = False
    bench_on: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("fused", "unfused")

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write the network, in evaluation mode and on the CPU, with the metadata inside."""
        raise InputError(f"backend {self.name} has no file format")

    def load(self, path: Path, threads: int | None = None) -> tuple[Callable[[Tensor], Any], ExportInfo | None]:
        """A callable from images to logits, and the metadata; None if the file holds none."""
        raise InputError(f"backend {self.name} has no file format")

    def owns(self, path: Path) -> bool:
        """Whether a file is of this format."""
        return path.suffix == self.suffix

    def check(self, precision: str = "fp32") -> None:
        """Check that the precision exists and that what it needs is installed.

        Raises:
            InputError: If it is not.
        """
        if precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise InputError(f"backend {self.name} has no precision {precision!r}; choose from {known}")
        require(self.needs(precision), self.extra, f"backend {self.name}")

    def needs(self, precision: str = "fp32") -> tuple[str, ...]:
        """The modules that a precision imports; int8 is quantised by NNCF."""
        return (*self.packages, *(("nncf",) if precision == "int8" else ()))

    def prepare(self, model: nn.Module, request: Request, threads: int | None = None) -> Callable[[Tensor], Any]:
        """A callable from images to logits for a network in memory."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network{self.suffix}"
            self.write(model, path, request)
            return self.load(path, threads)[0]

    def profile(self, model: nn.Module, request: Request, threads: int | None = None, calls: int = 20) -> Profile:
        """Time by operation; a runtime without a profiler gives the time of a call alone."""
        run = self.prepare(model, request, threads)
        for _ in range(2):
            run(request.example)
        start = time.perf_counter()
        for _ in range(calls):
            run(request.example)
        ms = 1e3 * (time.perf_counter() - start) / calls
        return Profile({"all operations": (ms, 1)}, request.precision, computed_in(run))


def computed_in(run: Callable[[Tensor], Any]) -> str:
    """The precision in which a prepared network is computed, `""` if it does not say."""
    return run.computed_in if isinstance(run, Runner) else ""


def common_precisions(found: Iterable[str]) -> str:
    """`"fp32"`, or `"int8 and fp32"` where some operations compute in another precision, the most frequent first."""
    return " and ".join(name for name, _ in Counter(found).most_common())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and log messages, for libraries that log what they raise."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def tracing(problem: str) -> Iterator[None]:
    """Raise an `InputError` that starts with `problem` for whatever an exporter raises of a network.

    Exporters raise a dozen types for what they cannot trace. torch.onnx explains itself around the cause.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{problem} ({one_line(error.__cause__ or error)})") from error
