"""ONNX: written by torch's exporter, checked by onnx, run by ONNX Runtime."""

import ast
import copy
import hashlib
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, one_line
from .backend import (
    KEY,
    Backend,
    ExportInfo,
    HalfPrecision,
    Profile,
    Request,
    Runner,
    common_precisions,
    quiet,
    sum_by_operation,
)
from .quantize import quantize

__all__ = ["ONNX", "onnx_program", "onnx_session", "traced"]

INPUT, OUTPUT = "images", "logits"

FLOAT_OPERATIONS = ["ReduceMean", "ReduceL2", "Sub", "HardSigmoid", "Clip", "Mul", "Add", "MatMul"]

# How ONNX Runtime calls the element types of a convolution's input.
ELEMENT_TYPES = {"float": "fp32", "float16": "fp16", "int8": "int8", "uint8": "int8"}


def onnx_program(
    model: nn.Module,
    example: Tensor,
    *,
    dynamic_shapes: Any = None,
    input_name: str = INPUT,
    output_names: Sequence[str] = (OUTPUT,),
) -> Any:
    """The network as an `onnx.ModelProto`, with nodes named after the modules that they come from.

    Args:
        model: In evaluation mode, on the CPU.
        example: Input of the network, for example images `(N, C, H, W)` of the shape to export for.
        dynamic_shapes: As `torch.export.export` takes them; None if all dimensions are fixed.
        input_name: Name of the graph's input.
        output_names: Names of the graph's outputs.
    """
    with quiet():  # it warns about operators that no network here uses
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=dynamic_shapes,
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
        del node.metadata_props[:]  # the exporter's stack traces, which are larger than the graph
    for values in (proto.graph.value_info, proto.graph.initializer, proto.graph.input, proto.graph.output):
        for value in values:
            del value.metadata_props[:]
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    return proto


# The last program of each network: the backends and precisions that `patnet bench` measures share it.
_programs: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any]] = weakref.WeakKeyDictionary()


def traced(model: nn.Module, request: Request) -> Any:
    """The network as an `onnx.ModelProto`, traced again only if its weights or the shape have changed."""
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    info = request.info
    key = request.example.shape, info.batch_size, info.img_size, weights.digest()
    if model not in _programs or _programs[model][0] != key:
        _programs[model] = key, onnx_program(model, request.example, dynamic_shapes=request.dynamic_shapes())
    return copy.deepcopy(_programs[model][1])


def onnx_session(model: bytes | Path, threads: int | None = None, profile: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: A file or its content.
        threads: Number of threads; None for ONNX Runtime's own choice.
        profile: Prefix of the file that a profile is written to; None for no profile.

    Raises:
        InputError: If the model cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    content = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen exception types
        name = "the network" if isinstance(model, bytes) else str(model)
        raise InputError(f"{name}: ONNX Runtime cannot load it ({one_line(error)})") from error


class ONNX(Backend):
    """ONNX Runtime on the CPU."""

    name = "onnx"
    title = "ONNX Runtime"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    bench_on = ("cpu",)

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write the network, with its metadata among the model's properties."""
        import onnx

        proto = traced(HalfPrecision(model, "fp16") if request.precision == "fp16" else model, request)
        if request.precision == "int8":
            proto = quantize(
                proto, ({INPUT: batch.numpy()} for batch in request.calibration_batches()), FLOAT_OPERATIONS
            )
        onnx.helper.set_model_props(proto, {KEY: request.info.to_json()})
        onnx.save(proto, path)
        onnx.checker.check_model(path, full_check=True)

    def load(self, path: Path, threads: int | None = None) -> tuple[Runner, ExportInfo | None]:
        """Load any network with one input and one output."""
        session = onnx_session(path, threads)
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
        info = ExportInfo.from_json(text) if text else None
        name = session.get_inputs()[0].name

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

        # Where it has no kernel for float16 or int8 it computes in float32; only its profile says where that is.
        return Runner(run, "fp32" if info and info.precision == "fp32" else ""), info

    def profile(self, model: nn.Module, request: Request, threads: int | None = None, calls: int = 20) -> Profile:
        """Time by operator, from ONNX Runtime's profile."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            self.write(model, path, request)
            session = onnx_session(path, threads, Path(folder) / "profile")
            for _ in range(calls + 2):
                session.run(None, {INPUT: request.example.numpy()})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
        warm = nodes[2 * len(nodes) // (calls + 2) :]
        convolutions = [e["args"] for e in warm if "Conv" in e["args"]["op_name"]]
        types = [next(iter(args["input_type_shape"][0])) for args in convolutions]
        found = [(event["args"]["op_name"], event["dur"] / 1e3, 1) for event in warm]
        computed_in = common_precisions(ELEMENT_TYPES.get(name, name) for name in types)
        return Profile(sum_by_operation(found, calls), request.precision, computed_in)
