"""What a network does with one image: its gates, its attention weights, and what each block changes."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nn import (
    ConvAttention,
    Full_sp,
    FusedConv2d,
    FusedLinear,
    FusedPAT_sp,
    LargeKernelAttention,
    PAT_cbam,
    PAT_ch,
    PAT_sp,
    PATBlock,
    RelativePosition,
    WindowAttention,
    spatial_mean_std,
)
from .hooks import Hook, Layer, evaluating, find_layers, hooked
from .position import position_maps

SPATIAL = (PAT_sp, Full_sp, PAT_cbam, FusedPAT_sp)
Passed = dict[tuple[str, nn.Module], Tensor]  # what went into ("input") and came out of ("output") a module
MAX_WEIGHTS = 2**28  # attention weights of a block beyond which they are left out: 1 GiB in float32


@dataclass(frozen=True)
class ChannelGates:
    """Gates of a channel attention, in [0, 1] (of GCT in [0, 2]), with mean and unbiased std of each channel's map.

    Each is an array `(C_u,)`.
    """

    gate: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class BlockShares:
    """What the parts of a block carry and change; energies and norms are over all values of the image's maps.

    Attributes:
        mixer: Class name of the mixer.
        channels: Channels `C` of the block.
        convolved: Share of the channels that the mixer convolves.
        energy_in: Share of the convolved channels in the sum of squares of the mixer's input.
        energy_out: The same of the mixer's output, after its own norm.
        channel_gates: Relative change `|g x - x| / |x|` by the channel gates; None without gates.
        spatial_gates: The same by the spatial gate.
        mixer_over_input: L2 norm of the mixer's output relative to its input.
        added: L2 norm of what the block adds to its input, relative to the input.
    """

    mixer: str
    channels: int
    convolved: float
    energy_in: float
    energy_out: float
    channel_gates: float | None
    spatial_gates: float | None
    mixer_over_input: float
    added: float


@dataclass
class Inspection:
    """What a network did with one image. Blocks are labelled by stage and number, from `"1.1"`.

    Attributes:
        logits: `(classes,)`.
        spatial_gates: Map `(h, w)` in [0, 1] of each block, which gates half of the channels (all, in `Full_sp`).
        channel_gates: Channel gates of each block.
        attention: Weights `(heads, h, w, h, w)` of each block, from query (the first `h, w`) to key positions, which
            sum to 1.
        shares: Energies and norms of each block.
        positions: Relative positions over the last block's map, see `position_maps`; None if there are none.
        missing: A line for each thing that the network does not have.
    """

    logits: np.ndarray
    spatial_gates: dict[str, np.ndarray] = field(default_factory=dict)
    channel_gates: dict[str, ChannelGates] = field(default_factory=dict)
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    shares: dict[str, BlockShares] = field(default_factory=dict)
    positions: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, in float64."""
        return torch.from_numpy(self.logits).double().softmax(0).numpy()


def inspect_network(model: nn.Module, image: Tensor) -> Inspection:
    """Inspect a network, fused or not, in evaluation mode on one preprocessed image `(1, in_chans, H, W)`.

    Its answer stays equal to the bit, hooks are removed, and every module has its own mode again. Gates, attention and
    shares are those of the blocks of `patnet.nn`, wherever they are in the network; any other network has logits only.

    Raises:
        InputError: If `image` is not one image, has another number of channels than the network takes, or is too small.
    """
    if image.ndim != 4 or len(image) != 1:
        raise InputError(f"give one image, (1, in_chans, H, W), not {tuple(image.shape)}")
    blocks = find_layers(model, PATBlock)
    mixers, spatial = (find_layers(model, types, blocks) for types in (ConvAttention, SPATIAL))
    passed: Passed = {}
    hooks = [
        Hook(module, side, partial(_keep, passed, (side, module)))
        for module in dict.fromkeys(part for layer in (*mixers, *spatial, *blocks) for part in _parts(layer.module))
        for side in ("input", "output")
    ]
    like = next(model.parameters(), image)
    with evaluating(model), torch.inference_mode():
        try:
            with hooked(model, hooks):
                logits = model(image.to(like.device, like.dtype))
        except (AssertionError, RuntimeError) as error:
            shape = "x".join(map(str, image.shape[1:]))
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(f"the network does not take an image of {shape} ({reason})") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError("the network gives no logits (1, classes): give a classifier")
        seen = Inspection(_as_array(logits[0]))
        channel_changes = {layer.label: _inspect_mixer(layer, passed, seen) for layer in mixers}
        spatial_changes = {layer.label: _inspect_spatial(layer, passed, seen) for layer in spatial}
        for layer in blocks:
            changes = channel_changes.get(layer.label), spatial_changes.get(layer.label)
            seen.shares[layer.label] = _shares(layer.module, passed, *changes)
    if seen.attention and find_layers(model, RelativePosition):
        seen.positions = position_maps(model, *list(seen.attention.values())[-1].shape[1:3])
    seen.missing += _missing(model, seen)
    return seen


def _keep(passed: Passed, key: tuple[str, nn.Module], x: Tensor) -> None:
    passed[key] = x.clone()  # a later module may change it in place


def _parts(module: Any) -> list[nn.Module]:
    """A layer and those of its modules whose inputs or outputs are read."""
    attention = getattr(module, "attn", module)
    named = ((attention, "gate"), (module, "conv"), (module, "mixer"))
    parts = (module, attention, *(getattr(owner, name, None) for owner, name in named))
    return [part for part in parts if isinstance(part, nn.Module)]


def _as_array(x: Tensor) -> np.ndarray:
    """A copy as an array, in float32 or wider."""
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).cpu().numpy().copy()


def _ratio(part: Tensor, total: Tensor) -> float:
    """`|part| / |total|` of L2 norms, 0 if the total is 0."""
    norm = float(total.float().norm())
    return float(part.float().norm()) / norm if norm > 0 else 0.0


def _gate_of(module: Any, passed: Passed) -> tuple[Tensor, Tensor]:
    """The input of a module and its gate, whose activation is a module in timm's."""
    x = passed["input", module]
    return x, passed["output", module.gate] if isinstance(module.gate, nn.Module) else module.gate(x)


def _inspect_mixer(layer: Layer, passed: Passed, seen: Inspection) -> float | None:
    """Add the channel gates or the attention weights of a mixer, if it has any; and how much the gates change."""
    mixer = layer.module
    attention = getattr(mixer, "attn", mixer)
    if hasattr(attention, "gate"):
        x, gate = _gate_of(attention, passed)
        mean, std = spatial_mean_std(x)
        seen.channel_gates[layer.label] = ChannelGates(*(_as_array(v.flatten()) for v in (gate, mean, std)))
        return _ratio((gate.view(1, -1, 1, 1) - 1) * x, x)
    if not hasattr(attention, "attention"):
        return None
    x = passed["input", attention]
    if attention is mixer:
        x = passed["output", mixer.conv] if mixer.full else x[:, mixer.split[0] :]
    _, _, height, width = x.shape
    if attention.num_heads * (height * width) ** 2 > MAX_WEIGHTS:
        seen.missing.append(
            f"The attention of block {layer.label} has {attention.num_heads}x{height * width}x{height * width} "
            "weights, too many to keep: give a smaller image."
        )
        return None
    weights = attention.attention(x)
    if isinstance(attention, WindowAttention):
        weights = _over_map(weights, attention, x)
    seen.attention[layer.label] = _as_array(weights.reshape(-1, height, width, height, width))
    return None


def _inspect_spatial(layer: Layer, passed: Passed, seen: Inspection) -> float:
    """Add the map of a spatial attention; and how much it changes."""
    module = layer.module
    if isinstance(module, PAT_sp):
        x = passed["input", module][:, : module.split[0]]
        gate = module.gate(x)
    else:
        x, gate = _gate_of(module.attn if isinstance(module, PAT_cbam) else module, passed)
        x = x[:, module.keep.flatten() == 0] if isinstance(module, FusedPAT_sp) else x
    seen.spatial_gates[layer.label] = _as_array(gate[0, 0])
    return _ratio((gate - 1) * x, x)


def _over_map(weights: Tensor, module: WindowAttention, x: Tensor) -> Tensor:
    """Weights within windows `(windows, heads, side^2, side^2)` as weights over the map `(heads, h, w, h, w)`."""
    side, (rows, columns), heads = module.window_size, module.tiling(x), module.num_heads
    padded = weights.new_zeros(heads, rows * side, columns * side, rows * side, columns * side)
    for number, window in enumerate(weights.view(-1, heads, side, side, side, side)):
        down, right = (slice(i * side, (i + 1) * side) for i in divmod(number, columns))
        padded[:, down, right, down, right] = window
    _, _, height, width = x.shape
    return padded[:, :height, :width, :height, :width]


def _shares(block: Any, passed: Passed, channel_gates: float | None, spatial_gates: float | None) -> BlockShares:
    """Compare what goes into a block and its mixer with what comes out."""
    x, mixed, y = passed["input", block], passed["output", block.mixer], passed["output", block]
    channels = x.shape[1]
    convolved = next((m.split[0] for m in block.mixer.modules() if hasattr(m, "split")), channels)
    return BlockShares(
        mixer=type(block.mixer).__name__,
        channels=channels,
        convolved=convolved / channels,
        energy_in=_ratio(x[:, :convolved], x) ** 2,
        energy_out=_ratio(mixed[:, :convolved], mixed) ** 2,
        channel_gates=channel_gates,
        spatial_gates=spatial_gates,
        mixer_over_input=_ratio(mixed, x),
        added=_ratio(y.float() - x.float(), x),
    )


def _missing(model: nn.Module, seen: Inspection) -> list[str]:
    """A line for each thing that the network does not have, and a remark on a fused one."""
    types = {type(module) for module in model.modules()}
    if not (seen.shares or seen.spatial_gates or seen.channel_gates or seen.attention):
        return [f"{type(model).__name__} has no block of patnet.nn, so no gates, attention or shares."]
    has_mixer, large_kernel = any(issubclass(one, PAT_ch) for one in types), LargeKernelAttention in types
    no_gates = "PAT_ch has no channel attention" if has_mixer else "no mixer is PAT_ch"
    no_weights = "large-kernel attention has no weights between positions" if large_kernel else "no mixer is PAT_sf"
    lines = {
        "No spatial gates: no MLP has a spatial attention.": not seen.spatial_gates,
        f"No channel gates: {no_gates}.": not seen.channel_gates,
        f"No self-attention: {no_weights}.": not seen.attention and not seen.missing,
        "No relative positions: no attention has a position method.": seen.attention and seen.positions is None,
        "The network is fused: a mixer's output is taken before its norm, which is folded into the next layer, as are "
        "the other norms and the mixed half of PAT_sp.": types & {FusedConv2d, FusedLinear},
    }
    return [line for line, applies in lines.items() if applies]
