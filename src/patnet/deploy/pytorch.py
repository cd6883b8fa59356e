"""PyTorch: eager, Triton kernels in a CUDA graph, and `torch.compile`."""

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from ..errors import InputError
from ..models import fuse
from .backend import DTYPES, Backend, Profile, Request, Runner, computed_in, sum_by_operation

__all__ = ["Compile", "Eager", "Triton", "gpu_precision", "has_bf16", "profile_in_torch"]


@contextmanager
def gpu_precision(precision: str) -> Any:
    """TF32 only where it is requested, since PyTorch's default is to use it in convolutions; the fastest kernels."""
    matmul = torch.backends.cuda.matmul
    before, tf32 = matmul.allow_tf32, precision == "tf32"
    with ExitStack() as stack:
        stack.callback(setattr, matmul, "allow_tf32", before)
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32))
        matmul.allow_tf32 = tf32
        yield


def has_bf16(device: str = "cpu") -> bool:
    """Whether PyTorch computes in bfloat16 on a device, in place of emulating it, slower than float32."""
    return device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Eager(Backend):
    """PyTorch without compilation."""

    name = "eager"
    title = "PyTorch eager"
    precisions: tuple[str, ...] = ("fp32", "tf32", "fp16", "bf16")
    devices: tuple[str, ...] = ("cpu", "cuda")
    bench_on: tuple[str, ...] = ("cpu", "cuda")
    any_layout = True

    def prepare(self, model: nn.Module, request: Request, threads: int | None = None) -> Runner:
        """A callable that casts the images to the precision and the memory format of the network."""
        precision, example = request.precision, request.example
        dtype = DTYPES[precision]
        if dtype != torch.float32:
            model = copy.deepcopy(model).to(dtype)
        layout = _memory_format(model)
        context: Callable[[], Any] = partial(gpu_precision, precision) if example.is_cuda else nullcontext
        with context():  # a CUDA graph keeps the kernels that are chosen here
            call = self.callable(model, example)

        def run(images: Tensor) -> Any:
            with torch.inference_mode(), context():
                return call(images.to(dtype=dtype, memory_format=layout))

        return Runner(run, "fp32" if precision == "tf32" and not example.is_cuda else precision)

    def callable(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Any]:
        """What computes the logits."""
        return model

    def profile(self, model: nn.Module, request: Request, threads: int | None = None, calls: int = 20) -> Profile:
        """Time by operator, from PyTorch's profiler."""
        return profile_in_torch(self.prepare(model, request), request, calls)


class Replay:
    """A network in a CUDA graph, for images of one shape: of a small batch, the launches take longer than the kernels.

    Args:
        network: In evaluation mode on a GPU.
        example: Images of the shape of all calls.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.network = network  # the graph reads its weights where they are
        self.images = example.to(next(network.parameters()).dtype, copy=True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(stream):
                for _ in range(3):  # compiles, and lets cuDNN choose
                    network(self.images)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = network(self.images)

    def __call__(self, images: Tensor) -> Any:
        """Logits of images, or a list of feature maps.

        Raises:
            InputError: If the images are of another shape than the example.
        """
        if images.shape != self.images.shape:
            wanted, given = ("x".join(map(str, x.shape)) for x in (self.images, images))
            raise InputError(f"takes images of shape {wanted}, not {given}: prepare another one for these")
        self.images.copy_(images)
        self.graph.replay()
        outputs = self.outputs  # in the graph's own memory, which the next call overwrites
        return outputs.clone() if isinstance(outputs, Tensor) else [output.clone() for output in outputs]


class Triton(Eager):
    """PyTorch on a GPU with Triton kernels for the blocks of PATNet and FasterNet, in a CUDA graph."""

    name = "triton"
    title = "Triton, CUDA graph"
    precisions = ("fp16", "bf16")
    packages = ("triton",)
    devices = ("cuda",)
    bench_on = ("cuda",)
    any_layout = False
    forms = ("fused",)

    def callable(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Any]:
        """The network of kernels."""
        from .triton import with_kernels  # where there is no GPU, there may be no Triton

        return Replay(with_kernels(fuse(model)), example)


class Compile(Eager):
    """PyTorch with `torch.compile`; on a GPU with CUDA graphs."""

    name = "compile"
    title = "torch.compile"
    bench_on = ("cuda",)  # on a CPU it takes longer to prepare than all others and is never the fastest

    def callable(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Any]:
        """The compiled network."""
        # CUDA graphs, since at small batch sizes the launches take longer than the kernels.
        compiled = torch.compile(copy.deepcopy(model), mode="max-autotune" if example.is_cuda else None, dynamic=False)
        if not example.is_cuda:
            return compiled

        def run(images: Tensor) -> Any:
            outputs = compiled(images)  # in the graph's own memory, which the next call overwrites
            return outputs.clone() if isinstance(outputs, Tensor) else [output.clone() for output in outputs]

        return run


def _memory_format(model: nn.Module) -> torch.memory_format:
    weight = next((p for p in model.parameters() if p.dim() == 4), None)
    last = weight is not None and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def profile_in_torch(run: Callable[[Tensor], Any], request: Request, calls: int) -> Profile:
    """Time by operator of a network that PyTorch runs; on a GPU the time of its kernels."""
    example = request.example
    for _ in range(3):
        run(example)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages go to standard error
    activity = ProfilerActivity.CUDA if example.is_cuda else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(calls):
            run(example)
    events = []
    for event in profiler.key_averages():
        us = event.self_device_time_total if example.is_cuda else event.self_cpu_time_total
        if us > 0:
            events.append((event.key, us / 1e3, event.count))
    return Profile(sum_by_operation(events, calls), request.precision, computed_in(run))
