"""ExecuTorch: programs for phones and other devices, computed by XNNPACK."""

import contextlib
import copy
import gc
import io
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..errors import InputError, one_line
from ..nn.relative_position import RelativePosition
from .backend import KEY, Backend, ExportInfo, Request, Runner, quiet

__all__ = ["ExecuTorch", "executorch_program", "load_method"]

aten = torch.ops.aten
_methods: WeakSet[Callable[..., Any]] = WeakSet()  # of the programs that are loaded


def _split(x: Tensor, sizes: list[int], dim: int = 0) -> list[Tensor]:
    return [aten.slice.Tensor(x, dim, end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _split_evenly(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    return [aten.slice.Tensor(x, dim, i, min(i + size, x.shape[dim])) for i in range(0, x.shape[dim], size)]


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    shape = [*x.shape[:dim], *x.shape[dim:][1:]]
    return [aten.slice.Tensor(x, dim, i, i + 1).view(shape) for i in range(x.shape[dim])]


def _unsqueeze(x: Tensor, dim: int) -> Tensor:
    dim = dim % (x.dim() + 1)
    return x.view([*x.shape[:dim], 1, *x.shape[dim:]])


def _matmul(a: Tensor, b: Tensor) -> Any:
    if a.dim() != 4 or b.dim() != 4 or a.shape[:2] != b.shape[:2]:
        return NotImplemented
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:3], b.shape[3])


def _vector_norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    if order != 2 or x.dim() != 4 or list(dim) != [2, 3]:
        return NotImplemented
    norm = (x * x).mean((2, 3), keepdim=True).sqrt() * (x.shape[2] * x.shape[3]) ** 0.5
    return norm if keepdim else norm.flatten(1)


# Operators that XNNPACK lacks, as some that it has. Without them a PATNet falls into 41 parts with copies between them.
DECOMPOSITIONS = {
    aten.split_with_sizes.default: _split,
    aten.split.Tensor: _split_evenly,
    aten.unbind.int: _unbind,
    aten.unsqueeze.default: _unsqueeze,
    aten.matmul.default: _matmul,
    aten.linalg_vector_norm.default: _vector_norm,
}


class _Constant(nn.Module):
    """A position bias for one size of the map."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.contiguous())

    def forward(self, *_: Any) -> Tensor:
        return self.value


class _LayerNorm2d(nn.Module):
    """`LayerNorm2d` whose means over the channels are 1x1 convolutions."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.mean = nn.Parameter(torch.full((1, norm.normalized_shape[0], 1, 1), 1 / norm.normalized_shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        x = x - F.conv2d(x, self.mean)
        x = x * (F.conv2d(x * x, self.mean) + self.norm.eps).rsqrt()
        if self.norm.weight is not None:
            x = x * self.norm.weight.view(1, -1, 1, 1) + self.norm.bias.view(1, -1, 1, 1)
        return x


def _rewrite(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a fused network in forms that XNNPACK computes as one program, for images of one size."""
    model = copy.deepcopy(model)
    biases: dict[nn.Module, Tensor] = {}
    positions = [module for module in model.modules() if isinstance(module, RelativePosition) and not module.contextual]
    hooks = [p.register_forward_hook(lambda module, _, bias: biases.__setitem__(module, bias)) for p in positions]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child in biases:
                setattr(module, name, _Constant(biases[child]))
            elif isinstance(child, LayerNorm2d):
                setattr(module, name, _LayerNorm2d(child))
    return model.eval()


def _set_threads(count: int) -> None:
    """Give ExecuTorch's threads, which all programs of the process share, a number.

    Raises:
        InputError: If loaded programs use another number.
    """
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool

    if (now := _threadpool_get_thread_count()) != count:
        gc.collect()  # programs that nobody uses any more
        if _methods:
            raise InputError(f"ExecuTorch computes with {now} threads in this process; use {count} in another one")
        _unsafe_reset_threadpool(count)


def executorch_program(model: nn.Module, example: Tensor, text: str, request: Request | None = None) -> bytes:
    """A network as a program for XNNPACK, for inputs of one shape.

    Args:
        model: In evaluation mode, on the CPU.
        example: Its input.
        text: What the constant method `patnet` returns.
        request: Says whether and how to quantise; None for float32.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        program = torch.export.export(_rewrite(model, example), (example,), strict=False)
        program = program.run_decompositions(DECOMPOSITIONS)
        if request is not None and request.precision == "int8":
            program = _quantize(program, request)
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={KEY: text},
        )
        return lowered.to_executorch().buffer


def load_method(path: Path, threads: int | None = None) -> tuple[Callable[[Tensor], list[Tensor]], str | None]:
    """The method `forward` of a program, and what its method `patnet` returns, if it has one.

    Raises:
        InputError: If it cannot be loaded.
    """
    try:
        # To standard error it describes the processor and each damaged file.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            from executorch.runtime import Runtime

            if threads is not None:
                _set_threads(threads)
            program = Runtime.get().load_program(path.read_bytes())
            forward = program.load_method("forward")
            text = program.load_method(KEY).execute(())[0] if KEY in program.method_names else None
    except (RuntimeError, ImportError) as error:  # a code of its own, or a build for another PyTorch
        what = "it is damaged, cut short or of another version"
        raise InputError(f"{path}: ExecuTorch cannot load it: {what} ({one_line(error)})") from error

    def method(x: Tensor) -> list[Tensor]:
        _ = program  # its memory holds the weights
        return list(forward.execute((x,)))

    _methods.add(method)
    return method, text


class ExecuTorch(Backend):
    """ExecuTorch with XNNPACK on the CPU, on x86 and on ARM; a program takes images of one size and number."""

    name = "executorch"
    title = "ExecuTorch"
    suffix = ".pte"
    dynamic = False
    precisions = ("fp32", "int8")
    packages = ("executorch",)
    extra = "executorch"
    bench_on = ("cpu",)

    def needs(self, precision: str = "fp32") -> tuple[str, ...]:
        """The modules that a precision imports; int8 is quantised by torchao."""
        return (*self.packages, *(("torchao",) if precision == "int8" else ()))

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write the program, with its metadata as the constant method `patnet`."""
        path.write_bytes(executorch_program(model, request.example, request.info.to_json(), request))

    def load(self, path: Path, threads: int | None = None) -> tuple[Runner, ExportInfo | None]:
        """Load a program with a method `forward`."""
        method, text = load_method(path, threads)
        info = ExportInfo.from_json(text) if text else None

        def run(images: Tensor) -> Tensor:
            try:
                return method(images.contiguous())[0].clone()
            except RuntimeError as error:
                shape = "x".join(map(str, images.shape))
                raise InputError(f"{path}: takes no images of shape {shape} ({one_line(error)})") from error

        return Runner(run, "fp32" if info and info.precision == "fp32" else ""), info


def _quantize(program: Any, request: Request) -> Any:
    """An exported program in int8, calibrated, by XNNPACK's quantiser."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True)
    # As for the other backends; the default, a histogram, takes minutes.
    extremes = replace(config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12))
    config = replace(config, input_activation=extremes, output_activation=extremes)
    prepared = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in request.calibration_batches():
            prepared(batch)
    return torch.export.export(convert_pt2e(prepared), (request.example,), strict=False)
