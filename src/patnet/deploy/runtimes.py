"""Runtimes for a network in memory: PyTorch as it is, compiled, ONNX Runtime, OpenVINO."""

import copy
import hashlib
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from .format import require
from .onnx import INPUT, onnx_program, onnx_session
from .openvino import blocked_convolutions, openvino_model, openvino_request, write_ir

__all__ = ["RUNTIMES", "Runtime", "prepare"]

Call = Callable[[Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Runtime(NamedTuple):
    """An entry of `RUNTIMES`.

    Attributes:
        precisions: That it runs in.
        packages: That it takes.
        extra: Of this package that brings them.
        prepare: Gives the callable for a network, an example, a precision, threads and calibration pictures.
    """

    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    prepare: Callable[[nn.Module, Tensor, str, int | None, Tensor | None], Call]


def _tf32(precision: str) -> AbstractContextManager:
    if precision != "tf32":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=True)


def _in_torch(call: Callable, model: nn.Module, precision: str) -> Call:
    """`call` in inference mode, with pictures cast and laid out as the network is."""
    weight = next((p for p in model.parameters() if p.dim() == 4), None)
    last = weight is not None and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    dtype = DTYPES[precision]

    def run(pictures: Tensor) -> Tensor:
        with torch.inference_mode(), _tf32(precision):
            return call(pictures.to(dtype=dtype, memory_format=layout))

    return run


def _cast(model: nn.Module, precision: str) -> nn.Module:
    return model if DTYPES[precision] == torch.float32 else copy.deepcopy(model).to(DTYPES[precision])


def _eager(model: nn.Module, example: Tensor, precision: str, threads: int | None, calibration: Tensor | None) -> Call:
    model = _cast(model, precision)
    return _in_torch(model, model, precision)


def _compile(
    model: nn.Module, example: Tensor, precision: str, threads: int | None, calibration: Tensor | None
) -> Call:
    model = copy.deepcopy(_cast(model, precision))
    # CUDA graphs, for at small batches the launches take longer than the kernels.
    mode = "max-autotune" if example.is_cuda else None
    call = _in_torch(torch.compile(model, mode=mode, dynamic=False), model, precision)
    if example.is_cuda:
        return lambda pictures: _copied(call(pictures))  # the graph's own memory is overwritten by the next call
    return call


def _copied(outputs: Any) -> Any:
    return outputs.clone() if isinstance(outputs, Tensor) else [output.clone() for output in outputs]


_PROGRAMS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _program(model: nn.Module, example: Tensor) -> Any:
    """The network in ONNX, exported once for each shape, and again when its weights have changed."""
    programs = _PROGRAMS.setdefault(model, {})
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    key = tuple(example.shape), weights.digest()
    if key not in programs:
        programs[key] = onnx_program(model, example)
    return programs[key]


def _batches(example: Tensor, calibration: Tensor | None) -> list[Tensor]:
    if calibration is None or len(calibration) < len(example):
        raise InputError(f"int8 needs at least {len(example)} calibration pictures")
    return [batch for batch in calibration.split(len(example)) if len(batch) == len(example)]


def _onnxruntime(
    model: nn.Module, example: Tensor, precision: str, threads: int | None, calibration: Tensor | None
) -> Call:
    proto = _program(model, example)
    if precision == "int8":
        from .quantize import quantize_onnx

        proto = quantize_onnx(proto, _batches(example, calibration), INPUT)
    session = onnx_session(proto.SerializeToString(), threads)
    return lambda pictures: torch.from_numpy(session.run(None, {INPUT: pictures.numpy()})[0])


def _openvino(
    model: nn.Module, example: Tensor, precision: str, threads: int | None, calibration: Tensor | None
) -> Call:
    graph = openvino_model(_program(model, example))
    if precision == "int8":
        from .quantize import quantize_openvino

        graph = quantize_openvino(graph, _batches(example, calibration))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        write_ir(graph, path, blocked=blocked_convolutions(model) if precision == "fp32" else None)
        request = openvino_request(path, threads)
    return lambda pictures: torch.from_numpy(request.infer([pictures.numpy()])[0])


RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime(("fp32", "tf32", "fp16", "bf16"), (), "", _eager),
    "compile": Runtime(("fp32", "tf32", "fp16", "bf16"), (), "", _compile),
    "onnxruntime": Runtime(("fp32", "int8"), ("onnx", "onnxscript", "onnxruntime"), "onnx", _onnxruntime),
    "openvino": Runtime(("fp32", "int8"), ("onnx", "onnxscript", "openvino"), "openvino", _openvino),
}


def prepare(
    model: nn.Module,
    example: Tensor,
    *,
    runtime: str = "eager",
    precision: str = "fp32",
    threads: int | None = None,
    calibration: Tensor | None = None,
) -> Call:
    """The network as a callable from pictures to logits, in one of `RUNTIMES`.

    Args:
        model: In evaluation mode, float32; fused or not.
        example: Pictures `(N, C, H, W)`, float32, on the device of the network and of the shape of all calls.
        runtime: Name in `RUNTIMES`.
        precision: `"fp32"`; in PyTorch also `"tf32"`, `"fp16"`, `"bf16"`; in the other two also `"int8"`.
        threads: Of ONNX Runtime and OpenVINO, None for their own choice; PyTorch's are set by `torch.set_num_threads`.
        calibration: Pictures to calibrate int8 with.

    Raises:
        InputError: If the runtime or the precision is unknown, or not installed.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"no runtime {runtime!r}{nearest(runtime, RUNTIMES)}; there are {', '.join(RUNTIMES)}")
    entry = RUNTIMES[runtime]
    if precision not in entry.precisions:
        raise InputError(f"{runtime} has no precision {precision!r}; there are {', '.join(entry.precisions)}")
    require(entry.packages, entry.extra, runtime)
    return entry.prepare(model, example, precision, threads, calibration)
