"""ONNX: written by torch's exporter, checked by onnx, run by ONNX Runtime."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import Format, InHalf, Request, dynamic_shapes, quietly
from .info import KEY, ExportInfo

__all__ = ["FORMAT", "onnx_program", "onnx_session"]

INPUT, OUTPUT = "pictures", "logits"


def onnx_program(
    model: nn.Module,
    example: Tensor,
    *,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    input_name: str = INPUT,
    output_names: Sequence[str] = (OUTPUT,),
) -> Any:
    """The network as an `onnx.ModelProto`, with nodes named after the modules that they come from.

    Args:
        model: In evaluation mode, on the CPU.
        example: What the network takes, pictures `(N, C, H, W)` of the shape to export for.
        dynamic_batch: Take any number of pictures.
        dynamic_size: Take any height and width of at least `LEAST_SIZE`.
        input_name: Of the graph's input.
        output_names: Of its outputs.
    """
    with quietly("torch.onnx"):  # it remarks on operators that no network here uses
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=dynamic_shapes(dynamic_batch, dynamic_size),
        )
    assert program is not None
    proto = program.model_proto
    seen: dict[str, int] = {}
    for node in proto.graph.node:
        scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        module = ast.literal_eval(scopes)[-2] if scopes else ""
        name = f"{module}/{node.op_type}" if module else node.op_type
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]  # the exporter's stack traces, which weigh more than the graph
    for values in (proto.graph.value_info, proto.graph.initializer, proto.graph.input, proto.graph.output):
        for value in values:
            del value.metadata_props[:]
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    return proto


def onnx_session(model: bytes | Path, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Raises:
        InputError: If the model cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime has a dozen types of its own
        name = "the network" if isinstance(model, bytes) else str(model)
        raise InputError(f"{name}: ONNX Runtime cannot load it ({' '.join(str(error).split())})") from error


def _write(model: nn.Module, path: Path, request: Request) -> None:
    import onnx

    if request.info.precision == "fp16":
        model = InHalf(model)
    proto = onnx_program(
        model, request.example, dynamic_batch=request.info.batch is None, dynamic_size=request.info.size is None
    )
    if request.info.precision == "int8":
        from .quantize import quantize_onnx

        proto = quantize_onnx(proto, request.calibration_batches(), INPUT)
    onnx.helper.set_model_props(proto, {KEY: request.info.to_json()})
    onnx.save(proto, path)
    onnx.checker.check_model(path, full_check=True)


def _load(path: Path, threads: int | None) -> tuple[Callable[[Tensor], Tensor], ExportInfo | None]:
    session = onnx_session(path, threads)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    names = [value.name for value in session.get_inputs()]

    def run(pictures: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {names[0]: pictures.numpy()})[0])

    return run, ExportInfo.from_json(text) if text else None


FORMAT = Format(
    suffix=".onnx",
    precisions=("fp32", "fp16", "int8"),
    packages=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    write=_write,
    load=_load,
)
