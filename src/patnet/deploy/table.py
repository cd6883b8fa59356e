"""The table of backends, and running a network in memory in one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, nearest
from .backend import Backend, ExportInfo, Profile, Request
from .executorch import ExecuTorch
from .onnx import ONNX
from .openvino import OpenVINO
from .pytorch import Compile, Eager, Triton
from .torch_export import AOTInductor, TorchExport

__all__ = ["BACKENDS", "backend_of", "find_backend", "prepare", "profile", "suffixes"]

# Those that are prepared quickly come first.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (Eager(), Triton(), ONNX(), OpenVINO(), ExecuTorch(), TorchExport(), Compile(), AOTInductor())
}


def find_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        InputError: If there is none.
    """
    if name not in BACKENDS:
        raise InputError(f"no backend {name!r}{nearest(name, BACKENDS)}; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]


def suffixes() -> dict[str, str]:
    """The suffixes of exported files, with the first backend that writes them."""
    found: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        if backend.suffix is not None:
            found.setdefault(backend.suffix, name)
    return found


def backend_of(path: Path) -> Backend:
    """The backend that an exported file is for.

    Raises:
        InputError: If the suffix is of none.
    """
    known = suffixes()
    if path.suffix not in known:
        raise InputError(f"{path}: is not an exported network; its suffix must be {', '.join(sorted(known))}")
    return next((backend for backend in BACKENDS.values() if backend.owns(path)), BACKENDS[known[path.suffix]])


def prepare(
    model: nn.Module,
    example: Tensor,
    *,
    backend: str = "eager",
    precision: str = "fp32",
    threads: int | None = None,
    calibration: Tensor | None = None,
) -> Callable[[Tensor], Any]:
    """The network as a callable from images to logits, run by one of `BACKENDS`.

    Args:
        model: In evaluation mode, float32; fused or not.
        example: Images `(N, C, H, W)`, float32, on the device of the network and of the shape of all calls.
        backend: Name in `BACKENDS`.
        precision: One of the backend's precisions, such as `"fp32"`, `"bf16"` or `"int8"`.
        threads: Number of threads of ONNX Runtime and OpenVINO, None for their own choice; PyTorch's are set by
            `torch.set_num_threads`.
        calibration: Images `(M, C, H, W)` to calibrate int8 with.

    Raises:
        InputError: If there is no such backend or precision, if it does not run on the device, or if a package that
            it needs is not installed.
    """
    chosen, request = _choose(example, backend, precision, calibration)
    return chosen.prepare(model, request, threads)


def profile(
    model: nn.Module,
    example: Tensor,
    *,
    backend: str = "openvino",
    precision: str = "fp32",
    threads: int | None = None,
    calibration: Tensor | None = None,
    calls: int = 20,
) -> Profile:
    """Where the time of a call goes by operation, averaged over several calls; arguments and errors as of `prepare`."""
    chosen, request = _choose(example, backend, precision, calibration)
    return chosen.profile(model, request, threads, calls)


def _choose(example: Tensor, name: str, precision: str, calibration: Tensor | None) -> tuple[Backend, Request]:
    backend = find_backend(name)
    backend.check(precision)
    if example.device.type not in backend.devices:
        raise InputError(f"backend {name} runs on {' or '.join(backend.devices)}, not on {example.device.type}")
    count, channels, *size = example.shape
    info = ExportInfo(
        backend=name, precision=precision, batch_size=count, img_size=(size[0], size[1]), in_chans=channels
    )
    return backend, Request(info, example, calibration)
