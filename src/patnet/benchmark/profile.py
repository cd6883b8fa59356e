"""Where a network's time goes in ONNX Runtime and OpenVINO, by kind of operation."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..deploy import RUNTIMES
from ..deploy.format import require
from ..deploy.onnx import INPUT, onnx_program
from ..deploy.openvino import blocked_convolutions, openvino_model, write_ir
from ..errors import InputError, nearest
from .candidates import build, channels_of, own_size

__all__ = ["PROFILERS", "Profile", "profile"]

# Times in ms by kind, and how often the kind was run, for one call.
Profile = dict[str, tuple[float, float]]


def _sum(found: list[tuple[str, float]], calls: int) -> Profile:
    kinds: dict[str, tuple[float, float]] = {}
    for kind, ms in found:
        before = kinds.get(kind, (0.0, 0.0))
        kinds[kind] = before[0] + ms / calls, before[1] + 1 / calls
    return dict(sorted(kinds.items(), key=lambda item: -item[1][0]))


def _onnxruntime(network: Any, pictures: torch.Tensor, threads: int, calls: int) -> Profile:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        proto = onnx_program(network, pictures).SerializeToString()
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        for _ in range(calls + 2):
            session.run(None, {INPUT: pictures.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    warm = nodes[2 * len(nodes) // (calls + 2) :]
    return _sum([(event["args"]["op_name"], event["dur"] / 1e3) for event in warm], calls)


def _openvino(network: Any, pictures: torch.Tensor, threads: int, calls: int) -> Profile:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        write_ir(openvino_model(onnx_program(network, pictures)), path, blocked=blocked_convolutions(network))
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
        request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    found = []
    for call in range(calls + 2):
        request.infer([pictures.numpy()])
        if call >= 2:
            for node in request.profiling_info:
                ms = node.real_time.total_seconds() * 1e3
                if ms > 0:  # what is merged into another operation takes no time
                    found.append((f"{node.node_type} ({node.exec_type})", ms))
    return _sum(found, calls)


PROFILERS: dict[str, Callable[[Any, torch.Tensor, int, int], Profile]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def profile(
    model: str,
    *,
    runtime: str = "openvino",
    form: str = "fused",
    size: int | None = None,
    batch: int = 1,
    calls: int = 20,
) -> Profile:
    """Time in ms and number of runs of each kind of operation, for one call on one thread, the longest first.

    Args:
        model: Name of a model of timm's, a run folder or a checkpoint.
        runtime: Name in `PROFILERS`.
        form: `"fused"` or `"trained"`.
        size: Side of the pictures in px; None for the model's own.
        batch: Pictures in a call.
        calls: Over which the times are averaged.

    Raises:
        InputError: If the runtime has no profiler or is not installed.
    """
    if runtime not in PROFILERS:
        raise InputError(
            f"--runtimes {runtime}: has no profile{nearest(runtime, PROFILERS)}; {', '.join(PROFILERS)} do"
        )
    require(RUNTIMES[runtime].packages, RUNTIMES[runtime].extra, runtime)
    network = build(model, form)
    side = size or own_size(model)
    pictures = torch.randn(batch, channels_of(network), side, side, generator=torch.Generator().manual_seed(0))
    return PROFILERS[runtime](network, pictures, 1, calls)
