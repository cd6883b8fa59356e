"""OpenVINO's intermediate representation, converted from ONNX."""

import io
import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models import ConvNorm
from ..nn.block import PATBlock
from ..nn.folding import FusedConv2d
from ..nn.pat_ch import PAT_ch
from ..nn.pat_sf import FusedPAT_sf
from .backend import KEY, Backend, ExportInfo, Profile, Request, Runner, common_precisions, sum_by_operation
from .onnx import traced
from .quantize import quantize

__all__ = ["OpenVINO", "blocked_convolutions", "request_blocked"]

# Kernels whose layout keeps channels in blocks of 16 (AVX-512) or 8: in it a split or a concatenation of channels is no
# copy if each part is a multiple of the block.
BLOCK = 16
BLOCKED_KERNELS = "cpu:jit_avx512_1x1,cpu:jit_avx512,cpu:jit_avx2_1x1,cpu:jit_avx2"

FLOAT_OPERATIONS = ["ReduceMean", "ReduceL2", "Subtract", "HardSigmoid", "Clamp", "Multiply", "Add"]

# Weights from which a matrix product gains by int8: the classifier, but not the mix of a channel attention.
MANY_WEIGHTS = 500_000

# How OpenVINO calls the precisions of its kernels.
KERNEL_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


def blocked_convolutions(model: nn.Module) -> list[str]:
    """Names of the convolutions of a fused PATNet that are faster with `BLOCKED_KERNELS`.

    These are the convolutions of its blocks, except those of the self-attention, whose layer norm and projections need
    channels-last maps, and those of blocks whose parts are no multiples of `BLOCK` channels, such as the first of
    PATNet-T0: there a block would hold channels of two parts, and OpenVINO has no fast kernel for that.
    """
    found = []
    for parent, block in model.named_modules():
        modules = dict(block.named_modules())
        fused = any(isinstance(module, FusedConv2d) for module in modules.values())
        aligned = all(part % BLOCK == 0 for m in modules.values() if isinstance(m, PAT_ch) for part in m.split)
        if isinstance(block, ConvNorm | PATBlock) and fused and aligned:
            attention = tuple(f"{name}." for name, module in modules.items() if isinstance(module, FusedPAT_sf))
            for name, module in modules.items():
                if isinstance(module, nn.Conv2d) and not name.startswith(attention):
                    found.append(f"{parent}.{name}")
    return found


def request_blocked(path: Path, names: list[str] | None = None) -> None:
    """Request `BLOCKED_KERNELS` in an .xml file for the convolutions of these modules, or for all of them."""
    wanted = None if names is None else {f"{name}/Conv" for name in names}
    tree = ET.parse(path)
    for layer in tree.iterfind("layers/layer[@type='Convolution']"):
        if wanted is None or layer.get("name", "").removesuffix("/WithoutBiases") in wanted:
            info = layer.find("rt_info")
            info = ET.SubElement(layer, "rt_info") if info is None else info
            if info.find("attribute[@name='primitives_priority']") is None:  # OpenVINO reads no file that has two
                ET.SubElement(info, "attribute", name="primitives_priority", version="0", value=BLOCKED_KERNELS)
    tree.write(path)


def _compile(path: Path, threads: int | None, *, profile: bool = False) -> tuple[Any, ExportInfo | None]:
    """An `openvino.CompiledModel` for the lowest latency on the CPU, and the metadata of the file.

    Raises:
        InputError: If the file is damaged or no network of OpenVINO.
    """
    import openvino

    try:
        root = ET.parse(path).getroot().tag
    except ET.ParseError as error:
        raise InputError(f"{path}: is damaged or truncated ({error})") from error
    if root != "net":  # OpenVINO would take it for a network of another library
        raise InputError(f"{path}: is not an OpenVINO network")
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": profile}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        model = openvino.Core().read_model(path)
        info = ExportInfo.from_json(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None
        core = openvino.Core()
        precision = info.precision if info else "fp32"
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            warnings.warn(
                f"{path}: this processor has no bf16 instructions, so OpenVINO computes in fp32", stacklevel=2
            )
        # OpenVINO's own choice is bf16 wherever the processor has instructions for it, even for a file in fp32.
        config["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
        return core.compile_model(model, "CPU", config), info
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path}: OpenVINO cannot load it ({reason})") from error


def _computed_in(compiled: Any) -> str:
    """The precisions of the kernels that OpenVINO executes the convolutions with."""
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kernels = [info["primitiveType"].astype(str) for info in nodes if info["layerType"].astype(str) == "Convolution"]
    suffixes = [kernel.rpartition("_")[2].lower() for kernel in kernels]  # of brgconv_avx512_1x1_f32
    return common_precisions(KERNEL_PRECISIONS.get(suffix, suffix) for suffix in suffixes)


def _is_small_product(operation: Any) -> bool:
    """Whether an operation is a matrix product of two maps, as in an attention, or has few weights, as a gate has."""
    if operation.get_type_name() != "MatMul":
        return False
    inputs = [value.get_source_output().get_node() for value in operation.inputs()]
    weights = [math.prod(node.get_output_shape(0)) for node in inputs if node.get_type_name() == "Constant"]
    return not weights or weights[0] < MANY_WEIGHTS


class OpenVINO(Backend):
    """OpenVINO on the CPU; fp16 and bf16 halve the file, and fp16 computes in fp32."""

    name = "openvino"
    title = "OpenVINO"
    suffix = ".xml"
    companions = (".bin",)  # the weights
    precisions = ("fp32", "fp16", "bf16", "int8")
    packages = ("onnx", "onnxscript", "openvino")
    extra = "openvino"
    bench_on = ("cpu",)

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write the network as an .xml file, and its weights next to it in a .bin file."""
        import openvino

        graph = openvino.Core().read_model(io.BytesIO(traced(model, request).SerializeToString()))
        if request.precision == "int8":
            graph = self.quantized(graph, (batch.numpy() for batch in request.calibration_batches()))
        graph.set_rt_info(request.info.to_json(), KEY)
        openvino.save_model(graph, path, compress_to_fp16=request.precision in ("fp16", "bf16"))
        if request.precision == "fp32":
            request_blocked(path, blocked_convolutions(model))

    def quantized(self, graph: Any, batches: Iterable[Any]) -> Any:
        """The `openvino.Model` in int8, except `FLOAT_OPERATIONS` and small matrix products."""
        products = [op.get_friendly_name() for op in graph.get_ops() if _is_small_product(op)]
        return quantize(graph, batches, FLOAT_OPERATIONS, products)

    def load(self, path: Path, threads: int | None = None) -> tuple[Runner, ExportInfo | None]:
        """Load any network with one input and one output."""
        compiled, info = _compile(path, threads)
        infer = compiled.create_infer_request()

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(infer.infer([images.numpy()])[0].copy())

        return Runner(run, _computed_in(compiled)), info

    def profile(self, model: nn.Module, request: Request, threads: int | None = None, calls: int = 20) -> Profile:
        """Time by operation and kernel, from OpenVINO's performance counters."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "network.xml"
            self.write(model, path, request)
            compiled, _ = _compile(path, threads, profile=True)
        infer = compiled.create_infer_request()
        events = []
        for call in range(calls + 2):
            infer.infer([request.example.numpy()])
            for node in infer.profiling_info if call >= 2 else ():
                ms = node.real_time.total_seconds() * 1e3
                if ms > 0:  # what is merged into another operation takes no time
                    events.append((f"{node.node_type} ({node.exec_type})", ms, 1))
        return Profile(sum_by_operation(events, calls), request.precision, _computed_in(compiled))
