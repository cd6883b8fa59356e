"""OpenVINO's intermediate representation, by way of ONNX."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.patnet import ConvNorm
from ..nn.block import PATBlock
from ..nn.fused import FusedConv2d
from ..nn.pat_ch import PAT_ch
from ..nn.pat_sf import FusedConvAndSelfAttention
from .format import Format, Request
from .info import KEY, ExportInfo
from .onnx import onnx_program

__all__ = ["FORMAT", "blocked_convolutions", "openvino_model", "openvino_request", "write_ir"]

# Kernels whose layout keeps channels in blocks of 8 or 16: there a split or a concatenation of channels is no copy.
BLOCKED_KERNELS = "cpu:jit_avx512_1x1,cpu:jit_avx512,cpu:jit_avx2_1x1,cpu:jit_avx2"


def blocked_convolutions(model: nn.Module) -> list[str]:
    """Names of the convolutions of a fused PATNet for which `BLOCKED_KERNELS` are faster on the whole.

    Those of its blocks but for the self-attention, whose layer norm and projections want the channels side by side;
    for a network without PAT blocks, or unfused, none. Nor for one whose parts are no multiples of 8 channels, such as
    PATNet-T1: a block would hold channels of both, and every split be a copy after all.
    """
    modules = dict(model.named_modules())
    blocks = [name for name, module in modules.items() if isinstance(module, ConvNorm | PATBlock)]
    attention = [name for name, module in modules.items() if isinstance(module, FusedConvAndSelfAttention)]
    fused = any(isinstance(module, FusedConv2d) for module in modules.values())
    if not fused or any(part % 8 for m in modules.values() if isinstance(m, PAT_ch) for part in m.split):
        return []

    def inside(name: str, parents: list[str]) -> bool:
        return any(name.startswith(f"{parent}.") for parent in parents)

    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and inside(name, blocks) and not inside(name, attention)
    ]


def openvino_model(proto: Any) -> Any:
    """An `openvino.Model` of an ONNX network."""
    import io

    import openvino

    return openvino.Core().read_model(io.BytesIO(proto.SerializeToString()))


def write_ir(model: Any, path: Path, *, half: bool = False, blocked: list[str] | None = None) -> None:
    """Write an `openvino.Model` as `path`, ending in .xml, and its weights as .bin beside it.

    Args:
        model: The `openvino.Model`.
        path: Of the .xml file.
        half: Keep the weights in 16 bits.
        blocked: Modules whose convolutions shall use `BLOCKED_KERNELS`, by their names in the PyTorch network.
    """
    import openvino

    openvino.save_model(model, path, compress_to_fp16=half)
    wanted = {f"{name}/Conv" for name in blocked or ()}
    tree = ET.parse(path)
    layers = tree.getroot().find("layers")
    assert layers is not None
    for layer in layers:
        if layer.get("type") == "Convolution" and layer.get("name", "").removesuffix("/WithoutBiases") in wanted:
            info = layer.find("rt_info")
            info = ET.SubElement(layer, "rt_info") if info is None else info
            ET.SubElement(info, "attribute", name="primitives_priority", version="0", value=BLOCKED_KERNELS)
    tree.write(path)


def openvino_request(model: Any, threads: int | None = None) -> Any:
    """An inference request on the CPU that answers one call at a time as fast as it can.

    Raises:
        InputError: If the model cannot be loaded.
    """
    import openvino

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        return openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    except RuntimeError as error:
        name = str(model) if isinstance(model, Path) else "the network"
        raise InputError(f"{name}: OpenVINO cannot load it ({str(error).strip().splitlines()[-1].strip()})") from error


def _write(model: nn.Module, path: Path, request: Request) -> None:
    proto = onnx_program(
        model, request.example, dynamic_batch=request.info.batch is None, dynamic_size=request.info.size is None
    )
    graph = openvino_model(proto)
    if request.info.precision == "int8":
        from .quantize import quantize_openvino

        graph = quantize_openvino(graph, request.calibration_batches())
    graph.set_rt_info(request.info.to_json(), KEY)
    fp32 = request.info.precision == "fp32"
    write_ir(
        graph,
        path,
        half=request.info.precision == "fp16",
        blocked=blocked_convolutions(model) if fp32 else None,
    )


def _load(path: Path, threads: int | None) -> tuple[Callable[[Tensor], Tensor], ExportInfo | None]:
    import openvino

    try:
        root = ET.parse(path).getroot().tag
    except ET.ParseError as error:
        raise InputError(f"{path}: is damaged or cut short ({error})") from error
    if root != "net":  # OpenVINO would take it for a network of some other library's
        raise InputError(f"{path}: is not a network of OpenVINO's")
    try:
        graph = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise InputError(f"{path}: OpenVINO cannot read it ({str(error).strip().splitlines()[-1].strip()})") from error
    info = ExportInfo.from_json(graph.get_rt_info([KEY]).astype(str)) if graph.has_rt_info([KEY]) else None
    request = openvino_request(graph, threads)

    def run(pictures: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([pictures.numpy()])[0].copy())

    return run, info


FORMAT = Format(
    suffix=".xml",
    precisions=("fp32", "fp16", "int8"),
    packages=("onnx", "onnxscript", "openvino"),
    extra="openvino",
    write=_write,
    load=_load,
)
