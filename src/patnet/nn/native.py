"""Faster blocks in eager PyTorch on a CPU: passes over the maps in C++, compiled once where a compiler is at hand.

Off unless `use_native()` is called or `PATNET_NATIVE=1` is in the environment. The blocks then compute norms with their
activations, channel gates and spatial gates in fewer passes, in training and inference. They do so for float maps in
channels-last; other devices, memory formats and dtypes, hooks on the modules inside, autocast, compilation, tracing and
export take the operations of PyTorch.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from ..errors import InputError
from ..files import atomic_write

__all__ = ["use_native"]

_SOURCE = Path(__file__).with_suffix(".cpp")
_ARCHITECTURES = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_DTYPES = (torch.float32, torch.float64)
_ACTIVATIONS: dict[type, int] = {nn.ReLU: 1, timm.layers.GELU: 2}  # as in native.cpp
# The functions of native.cpp in the order of its table, and their arguments: p a pointer, l long, i int, d double.
_FUNCTIONS = {
    "norm": "iiddplppppplli" + "ppl",
    "norm_backward": "iiplplppplli" + "ppl",
    "moments": "pllllipp",
    "affine": "plpplllipl",
    "sums": "plplppplllipp",
    "backward": "plplppplllipl",
    "gate": "plpllip",
    "spatial": "plppppp" + "pllli" + "pl",
    "channel_gate": "plpllppllli" + "pl",
}
_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "i": ctypes.c_int, "d": ctypes.c_double}
_REPLACEABLE: set[type] = {nn.Conv2d, *_ACTIVATIONS}
_functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
_enabled = os.environ.get("PATNET_NATIVE") == "1"


def use_native(enabled: bool = True) -> None:
    """Compute the blocks in eager PyTorch on a CPU with the functions of this package in C++, or no longer.

    They are compiled at the first call, which takes some seconds, and kept in `$XDG_CACHE_HOME/patnet` (`~/.cache`).

    Raises:
        InputError: If no C++ compiler with OpenMP is found (`c++`, or the environment's `CXX`).
    """
    global _enabled
    if enabled and not _functions:
        _load()
    _enabled = enabled


def uses_native() -> bool:
    """Whether `use_native` has turned them on."""
    return _enabled


def _load() -> None:
    """Compile native.cpp, unless it has been, and look its functions up."""
    flags = (*_FLAGS, *_ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability(), ()))
    key = hashlib.sha256(_SOURCE.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patnet"
    library = directory / f"native-{key}.so"
    if not library.exists():
        compiler = shutil.which(os.environ.get("CXX", "c++"))
        if compiler is None:
            raise InputError("PATNet's native functions need a C++ compiler: install g++, or set CXX to one")
        with atomic_write(library, "set XDG_CACHE_HOME to another directory") as made:
            done = subprocess.run([compiler, *flags, _SOURCE, "-o", made], capture_output=True, text=True)
            if done.returncode:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
                raise InputError(f"{compiler} cannot compile {_SOURCE.name}: {reason}")
    table = (ctypes.c_void_p * (len(_DTYPES) * len(_FUNCTIONS))).in_dll(ctypes.CDLL(str(library)), "functions")
    names = [(name, dtype) for dtype in _DTYPES for name in _FUNCTIONS]
    for (name, dtype), address in zip(names, table, strict=True):
        prototype = ctypes.CFUNCTYPE(None, *(_TYPES[kind] for kind in _FUNCTIONS[name]))
        _functions[name, dtype] = prototype(address)


def takes(x: Tensor, *parts: Any, grad: bool = True) -> bool:
    """Whether the functions below take this map and compute in place of these modules, which must have no hooks.

    Args:
        grad: Whether gradients must be recorded, or must not. Without them the functions that are not for the fused
            network are no faster at batch size 1.
    """
    if (
        not _enabled
        or torch.is_grad_enabled() is not grad
        or type(x) is not Tensor
        or x.device.type != "cpu"
        or x.dtype not in _DTYPES
        or x.numel() <= x.shape[1]
    ):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if (
        torch.func.debug_unwrap(x) is not x
        or _stride(x) is None
        or not all(_replaceable(part, x.dtype) for part in parts)
    ):
        return False
    if not _functions:
        _load()
    return True


def replaceable(kind: type) -> type:
    """Class decorator: the functions below may compute in place of such modules."""
    _REPLACEABLE.add(kind)
    return kind


def _replaceable(part: Any, dtype: torch.dtype) -> bool:
    """Whether it is such a module without hooks, with parameters of this dtype, and with statistics if it is a norm."""
    if (
        type(part) not in _REPLACEABLE
        or part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
    ):
        return False
    if isinstance(part, nn.BatchNorm2d) and (part.running_mean is None or part.momentum is None or part.weight is None):
        return False
    return all(p is None or p.dtype == dtype for p in part._parameters.values())


def _stride(x: Tensor) -> int | None:
    """Distance of the rows of channels in a map `(N, C, H, W)`, in elements; None if it is not stored as such rows."""
    batch, channels, height, width = x.shape
    if channels > 1 and x.stride(1) != 1:
        return None
    stride = x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0)
    rows = height == 1 or x.stride(2) == width * stride
    return stride if rows and (batch == 1 or x.stride(0) == height * width * stride) else None


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """A map, made dense if it is not stored as rows of channels, and the distance of its rows."""
    stride = _stride(x)
    if stride is None:
        x = x.contiguous(memory_format=torch.channels_last)
        stride = x.shape[1]
    return x, stride


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    _functions[name, dtype](*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def _size(x: Tensor, groups: int = 1) -> tuple[int, int, int]:
    """Rows of each group and channels of a map, and the number of threads."""
    return x.numel() // (x.shape[1] * groups), x.shape[1], torch.get_num_threads()


def _empty(x: Tensor) -> Tensor:
    """A dense map in channels-last of the size of `x`."""
    return torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last)


def _norm_state(norm: Any) -> tuple[Any, ...]:
    """The arguments of `_normalize` after the map and the activation."""
    if norm.training:
        norm.num_batches_tracked.add_(1)
    running = norm.running_mean, norm.running_var
    return norm.weight, norm.bias, *running, norm.training, norm.momentum, norm.eps


def _normalize(x, s, y, act, weight, bias, mean, var, training, momentum, eps) -> Tensor:
    """Write the normalised and activated `s * x` to `y`; mean, 1 / std, scale and shift of each channel, `(4, C)`."""
    coefficients = x.new_empty(4, x.shape[1])
    parameters = (s, weight, bias, mean, var)
    pair = (coefficients, y, _stride(y))
    _call("norm", x.dtype, act, training, momentum, eps, x, _stride(x), *parameters, *_size(x), *pair)
    return coefficients


def _normalize_backward(gradient, x, s, w, act, training, coefficients, dx) -> Tensor:
    """Write the gradient of `x` to `dx`; those of the weight, of the bias, and of `w` if `s` is its gate, `(3, C)`."""
    gradients = x.new_empty(3, x.shape[1])
    maps = (gradient, _stride(gradient), x, _stride(x))
    _call("norm_backward", x.dtype, act, training, *maps, s, w, coefficients, *_size(x), gradients, dx, _stride(dx))
    return gradients


class _Norm(Function):
    """Batch norm and activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: int, weight: Tensor, bias: Tensor, *state: Any) -> Tensor:
        y = _empty(x)
        ctx.save_for_backward(x, _normalize(x, None, y, act, weight, bias, *state))
        ctx.act, ctx.training = act, state[2]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, coefficients = ctx.saved_tensors
        dx = _empty(x)
        g = _normalize_backward(_rows(gradient)[0], x, None, None, ctx.act, ctx.training, coefficients, dx)
        return dx, None, g[0], g[1], None, None, None, None, None


def norm(x: Tensor, layer: nn.Module, act: nn.Module | None = None) -> Tensor:
    """`act(layer(x))` for a batch norm."""
    return _Norm.apply(x, _ACTIVATIONS[type(act)] if act is not None else 0, *_norm_state(layer))


class _ChannelAttention(Function):
    """`PAT_ch`, of which `coefficients` gives scale and shift from the moments, in an autograd graph of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, coefficients: Callable[..., Any], *parameters: Tensor) -> Tensor:
        convolved, y = len(weight), _empty(x)
        x2 = x[:, convolved:]
        with torch.enable_grad():
            inner = [value.requires_grad_() for value in moments(x2)]
            scale, shift = coefficients(*inner)
        y[:, :convolved] = F.conv2d(x[:, :convolved], weight, padding=1)
        affine(x2, scale, shift, y[:, convolved:])
        ctx.save_for_backward(x, weight)
        ctx.graph = (scale, shift), (*inner, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x, weight), (outer, inputs) = ctx.saved_tensors, ctx.graph
        (scale, shift), mean = outer, inputs[0].detach()
        convolved, pixels, groups, dx = len(weight), x.shape[2] * x.shape[3], len(x), _empty(x)
        gradient, stride = _rows(gradient)
        x1, x2, dy1, dy2 = (part for whole in (x, gradient) for part in (whole[:, :convolved], whole[:, convolved:]))
        sums, maps = x.new_empty(2, *mean.shape), (dy2, stride, x2, _stride(x2))
        _call("sums", x.dtype, *maps, scale, shift, mean, groups, *_size(x2, groups), sums[0], sums[1])
        outer, gradients = outer[: 1 + shift.requires_grad], (torch.addcmul(sums[1], sums[0], mean), sums[0])
        learned = [value for value in inputs if value.requires_grad]
        found = iter(torch.autograd.grad(outer, learned, gradients[: len(outer)], retain_graph=True, allow_unused=True))
        dmean, dvar, *rest = (next(found) if value.requires_grad else None for value in inputs)
        d = dvar * (2 / pixels)
        e = torch.addcmul(dmean / pixels, d, mean, value=-1)
        _call("backward", x.dtype, *maps, scale, d, e, groups, *_size(x2, groups), dx[:, convolved:], _stride(dx))
        sizes = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
        dx[:, :convolved], dweight, _ = torch.ops.aten.convolution_backward(dy1, x1, weight, None, *sizes)
        return dx, dweight, None, *rest


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image's channels, `(N, C)` each."""
    groups = len(x)
    mean, var = x.new_empty(2, groups, x.shape[1])
    _call("moments", x.dtype, x, _stride(x), groups, *_size(x, groups), mean, var)
    return mean, var


def affine(x: Tensor, scale: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    """Write `scale * x + shift` to `y`, with both `(N, C)`."""
    _call("affine", x.dtype, x, _stride(x), scale, shift, len(x), *_size(x, len(x)), y, _stride(y))
    return y


def channel_attention(x: Tensor, conv: nn.Module, attn: Any, norm: Any) -> Tensor:
    """`PAT_ch` with the Gaussian attention: the norm's statistics follow from the gates and the moments."""
    pixels = x.shape[2] * x.shape[3]

    def coefficients(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        std = (var * (pixels / max(pixels - 1, 1))).clamp_min(1e-12).sqrt()
        gate = attn.excite(torch.stack((mean, std), dim=-1)).flatten(1)  # (N, attended)
        centre, spread = norm.running_mean, norm.running_var
        if norm.training:
            gated = gate * mean
            centre = gated.mean(0)
            spread = (gate.square() * var + (gated - centre).square()).mean(0)
            count = len(x) * pixels
            with torch.no_grad():
                norm.running_mean.lerp_(centre, norm.momentum)
                norm.running_var.lerp_(spread * (count / max(count - 1, 1)), norm.momentum)
                norm.num_batches_tracked.add_(1)
        scale = norm.weight * (spread + norm.eps).rsqrt()
        return gate * scale, (norm.bias - centre * scale).expand(len(x), -1).contiguous()

    return _ChannelAttention.apply(x, conv.weight, coefficients, *attn.parameters(), norm.weight, norm.bias)


class _Spatial(Function):
    """`PAT_sp`."""

    @staticmethod
    def forward(ctx, x, w, weight, gate_weight, gate_bias, *rest) -> Tensor:
        gate_state, (norm_weight, norm_bias), state = rest[:5], rest[5:7], rest[7:]
        gated, y, s = w.numel(), _empty(x), x.new_empty(x.numel() // x.shape[1])
        x1, x2 = x[:, :gated], x[:, gated:]
        _call("gate", x.dtype, x1, _stride(x1), w, *_size(x1), s)
        gate_norm = _normalize(x1, s, y[:, :gated], 0, gate_weight, gate_bias, *gate_state)
        normalized = _empty(x2)
        norm = _normalize(x2, None, normalized, 0, norm_weight, norm_bias, *state)
        torch.mm(_matrix(normalized), weight.flatten(1).t(), out=_matrix(y[:, gated:]))
        ctx.save_for_backward(x, w, weight, s, gate_norm, norm, normalized)
        ctx.training = gate_state[2], state[2]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w, weight, s, gate_norm, norm, normalized = ctx.saved_tensors
        gated, gradient, dx = w.numel(), _rows(gradient)[0], _empty(x)
        dy2 = _matrix(gradient[:, gated:])
        dweight = dy2.t() @ _matrix(normalized)
        dnormalized = _empty(normalized)
        torch.mm(dy2, weight.flatten(1), out=_matrix(dnormalized))
        halves = (slice(None, gated), slice(gated, None))
        x1, x2 = (x[:, half] for half in halves)
        dx1, dx2 = (dx[:, half] for half in halves)
        first = _normalize_backward(gradient[:, :gated], x1, s, w, 0, ctx.training[0], gate_norm, dx1)
        second = _normalize_backward(dnormalized, x2, None, None, 0, ctx.training[1], norm, dx2)
        none = (None,) * 5
        return dx, first[2].view_as(w), dweight.view_as(weight), first[0], first[1], *none, second[0], second[1], *none


def _matrix(x: Tensor) -> Tensor:
    """The rows of channels of a map, `(N * H * W, C)`."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def spatial_attention(
    x: Tensor, gate_conv: nn.Module, gate_norm: nn.Module, norm: nn.Module, conv: nn.Module
) -> Tensor:
    """`PAT_sp`."""
    return _Spatial.apply(x, gate_conv.weight, conv.weight, *_norm_state(gate_norm), *_norm_state(norm))


def fused_channel_attention(x: Tensor, conv: Any, mix: Any) -> Tensor:
    """`PAT_ch` with `FusedGaussianChannelAttention`."""
    convolved, groups, y = len(conv.weight), len(x), _empty(x)
    x2 = x[:, convolved:]
    y1, stride = _rows(conv(x[:, :convolved]))
    maps = (x2, _stride(x), y1, stride, convolved)
    _call("channel_gate", x.dtype, *maps, mix.weight, mix.bias, groups, *_size(x2, groups), y, _stride(y))
    return y


def fused_spatial_attention(x: Tensor, attn: Any, shortcut: Tensor) -> Tensor:
    """`shortcut + attn(x)` for a `FusedPAT_sp`."""
    x, stride = _rows(x)
    y = _empty(x)
    constants = (attn.gate_conv.weight, attn.gate_conv.bias, attn.scale, attn.keep, attn.shift)
    _call("spatial", x.dtype, x, stride, *constants, shortcut, _stride(shortcut), *_size(x), y, _stride(y))
    return y
