"""int8 by static quantisation, calibrated on pictures, through NNCF for OpenVINO and ONNX alike."""

import contextlib
import logging
import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .format import require

__all__ = ["quantize_onnx", "quantize_openvino"]

# What stays in float32: statistics, gates, shortcuts and self-attention. They are a few percent of the work, their
# values are those that int8 hurts most, and to quantise them costs more conversions than it saves.
FLOAT_OPERATIONS = {
    "openvino": ["ReduceMean", "ReduceL2", "Subtract", "HardSigmoid", "Multiply", "Add", "MatMul"],
    "onnx": ["ReduceMean", "ReduceL2", "Sub", "HardSigmoid", "Mul", "Add", "MatMul"],
}


def _quantize(model: Any, items: list[Any], kind: str) -> Any:
    require(("nncf",), "onnx", "int8")
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress, beside which the output must stay readable
        return nncf.quantize(
            model,
            nncf.Dataset(items),
            subset_size=len(items),
            ignored_scope=nncf.IgnoredScope(types=FLOAT_OPERATIONS[kind], validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                # Processors without VNNI add two products in 16 bits: full-range weights would overflow them.
                overflow_fix=OverflowFix.ENABLE,
                # The mean of each picture's range, the default, clips the channels that answer to few pictures.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )


def quantize_openvino(model: Any, batches: Iterable[Tensor]) -> Any:
    """An `openvino.Model` with int8 weights and activations.

    Args:
        model: The `openvino.Model`.
        batches: Preprocessed pictures, `(N, C, H, W)` each.
    """
    return _quantize(model, [batch.numpy() for batch in batches], "openvino")


def quantize_onnx(model: Any, batches: Iterable[Tensor], input_name: str) -> Any:
    """An `onnx.ModelProto` with int8 weights and activations, as pairs of QuantizeLinear and DequantizeLinear.

    Args:
        model: The `onnx.ModelProto`.
        batches: Preprocessed pictures, `(N, C, H, W)` each.
        input_name: Of the network.
    """
    return _quantize(model, [{input_name: batch.numpy()} for batch in batches], "onnx")
