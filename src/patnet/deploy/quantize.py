"""int8 by static quantisation, calibrated on images, by NNCF."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["quantize"]


def quantize(model: Any, batches: Iterable[Any], float_operations: list[str], float_names: Sequence[str] = ()) -> Any:
    """An `openvino.Model` or an `onnx.ModelProto` with int8 weights and activations.

    Args:
        model: The model in float32.
        batches: Inputs to calibrate with, as the runtime takes them.
        float_operations: Operation types to keep in float32. Statistics, gates, shortcuts and self-attention are a
            few percent of the work; int8 costs most accuracy there, and takes more conversions than it saves.
        float_names: Names of further operations to keep in float32.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)
    items = list(batches)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bar, since standard output must stay readable
        return nncf.quantize(
            model,
            nncf.Dataset(items),
            subset_size=len(items),
            ignored_scope=nncf.IgnoredScope(names=list(float_names), types=float_operations, validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                # Processors without VNNI add two products in 16 bits, which full-range weights would overflow.
                overflow_fix=OverflowFix.ENABLE,
                # The default, the mean of each image's range, clips the channels that respond to few images.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
