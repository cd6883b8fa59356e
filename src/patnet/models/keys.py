"""Names of the weights: the authors' keys, the wrappers checkpoints come in, and ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["is_authors", "native_state_dict"]

# The authors count stem-less stages and mergings in one list, 0 2 4 6 and 1 3 5, and name the layers of an MLP
# by their place in a Sequential. Their names, and what they are here:
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
    """The weights in a checkpoint: out of `state_dict` or `model`, and without a `model.` or `module.` before each."""
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
    """Whether the keys are the authors' own; timm's FasterNet shares many, but merges inside its stages."""
    return (
        "patch_embed.proj.weight" in weights
        and "stages.0.blocks.0.spatial_mixing.partial_conv3.weight" in weights
        and not any(".downsample." in key for key in weights)
    )


def native_state_dict(checkpoint: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names of `PATNet`.

    Args:
        checkpoint: `{key: tensor}` in our names or the authors', as it is or wrapped in `state_dict` or `model`,
            with or without a `model.` prefix.
        model: Taken and not used, so that timm can call this as its filter for checkpoints.
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
