"""What the names of weights say: the authors' names, the wrappers of checkpoints, and the network of plain weights."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import InputError

__all__ = ["infer_arguments", "is_authors", "native_state_dict"]

# The variant of each width; of other widths, the variant with their activation.
_VARIANT_OF_WIDTH = {32: "t0", 48: "t1", 64: "t2", 96: "s", 128: "m", 160: "l"}
_METHOD_OF_BUCKETS = {81: "euclidean", 81**2: "product"}

# The authors count stages (0 2 4 6) and downsampling layers (1 3 5) in one list, and name the layers of an MLP by their
# index in a Sequential. Their names, and ours:
_AUTHORS = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.norm\.", "stem.norm."),
    (r"^stages\.([135])\.reduction\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.downsample.conv."),
    (r"^stages\.([135])\.norm\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.downsample.norm."),
    (r"^stages\.([0246])\.blocks\.", lambda m: f"stages.{int(m[1]) // 2}.blocks."),
    (r"\.mlp\.0\.", ".mlp.conv1."),
    (r"\.mlp\.1\.", ".mlp.norm."),
    (r"\.mlp\.3\.", ".mlp.conv2."),
    (r"\.mlp\.4\.conv_attn\.", ".mlp.attn.gate_conv."),
    (r"\.mlp\.4\.norm\.", ".mlp.attn.gate_norm."),
    (r"\.mlp\.4\.norm2\.", ".mlp.attn.norm."),
    (r"\.mlp\.4\.conv\.", ".mlp.attn.conv."),
    (r"\.spatial_mixing\.partial_conv3\.", ".mixer.conv."),
    (r"\.spatial_mixing\.norm\.", ".mixer.norm."),
    (r"\.spatial_mixing\.attn\.cfc1\.", ".mixer.attn.mix."),
    (r"\.spatial_mixing\.attn\.bn\.", ".mixer.attn.norm."),
    (r"\.spatial_mixing\.attn\.qkv\.", ".mixer.qkv."),
    (r"\.spatial_mixing\.attn\.proj\.", ".mixer.proj."),
    (r"\.spatial_mixing\.attn\.rpe_k\.lookup_table_(bias|weight)$", ".mixer.position.table"),
    (r"^norm([0246])\.", lambda m: f"output_norms.{int(m[1]) // 2}."),
    (r"^avgpool_pre_head\.1\.", "conv_head."),
    (r"^head\.", "classifier."),
)


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint, out of `state_dict` or `model`, without the prefix `model.` or `module.`."""
    for wrapper in ("state_dict_ema", "state_dict", "model_ema", "model"):
        inner = checkpoint.get(wrapper)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    weights = {key: value for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for prefix in ("module.", "model.", "_orig_mod."):
        inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        known = any(key.startswith(("stem.", "patch_embed.", "model.", "module.", "_orig_mod.")) for key in inside)
        if known or 0 < len(inside) == len(weights):
            return unwrap(inside)
    return weights


def is_authors(weights: Mapping[str, Tensor]) -> bool:
    """Whether the keys are the authors' own; timm's FasterNet shares many, but downsamples inside its stages."""
    return (
        "patch_embed.proj.weight" in weights
        and "stages.0.blocks.0.spatial_mixing.partial_conv3.weight" in weights
        and not any(".downsample." in key for key in weights)
    )


def native_state_dict(checkpoint: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names of `PATNet`.

    Args:
        checkpoint: `{key: tensor}` with our names or the authors', perhaps inside `state_dict` or `model`, with or
            without the prefix `model.`.
        model: Not used; timm passes it to its filters of checkpoints.
    """
    weights = unwrap(checkpoint)
    if not is_authors(weights):
        return weights
    native = {}
    for key, value in weights.items():
        for pattern, ours in _AUTHORS:
            key = re.sub(pattern, ours, key)
        native[key] = value
    return native


def infer_arguments(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Variant and arguments of the PATNet of standard blocks that `weights` fit, from their names and shapes.

    The activation is the variant's own, because weights do not show it: GELU below 64 channels, ReLU from there on.

    Raises:
        InputError: If the names are not a PATNet's.
    """
    blocks = [(int(m[1]), int(m[2])) for key in weights if (m := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key))]
    try:
        dim, in_chans = weights["stem.conv.weight"].shape[:2]
        last = max(stage for stage, _ in blocks)
        depths = [1 + max(block for s, block in blocks if s == stage) for stage in range(last + 1)]
        hidden = weights[f"stages.{last}.blocks.0.mlp.conv1.weight"].shape[0]
        convolved = weights[f"stages.{last}.blocks.0.mixer.conv.weight"].shape[0]
        args: dict[str, Any] = {
            "embed_dim": dim,
            "in_chans": in_chans,
            "depths": depths,
            "mlp_ratio": hidden / (dim * 2**last),
            "partial_ratio": convolved / (dim * 2**last),
            "num_classes": len(weights["classifier.weight"]) if "classifier.weight" in weights else 0,
            "feature_dim": len(weights["conv_head.weight"]),
            "spatial_attn": "pat_sp" if "stages.0.blocks.0.mlp.attn.gate_conv.weight" in weights else "none",
            "output_norms": "output_norms.0.weight" in weights,
        }
        table = weights.get(f"stages.{last}.blocks.0.mixer.position.table")
        args["position_method"] = "none" if table is None else _METHOD_OF_BUCKETS[table.shape[-1]]
        if table is not None:
            args |= {"num_heads": len(table), "position_mode": "bias" if table.ndim == 2 else "contextual"}
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"the weights are not those of a PATNet of standard blocks ({error}); "
            "a directory with config.json describes any network"
        ) from error
    if len(depths) < 4:
        args["mixers"] = ("pat_ch",) * last + ("pat_sf",)
    return f"patnet_{_VARIANT_OF_WIDTH.get(dim, 't0' if dim < 64 else 't2')}", args
