"""What a network does with one picture: its gates, its attention, and what each block passes on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nn import (
    Full_ch,
    Full_sf,
    Full_sp,
    FullAttention,
    LargeKernelAttention,
    PartialAttention,
    PAT_cbam,
    PAT_ch,
    PAT_sf,
    PAT_sp,
    PATBlock,
    WindowAttention,
)
from ..nn.fused import FusedConv2d, FusedLinear, FusedPAT_sp
from ..nn.pat_sf import FusedFull_sf, FusedPAT_sf
from ..nn.statistics import spatial_mean_std
from .listening import Layer, find_layers, listening

__all__ = ["BlockShares", "ChannelGates", "Inspection", "inspect_network"]

# Numbers of a block's attention weights beyond which they are left out: 1 GB in float32.
MOST_WEIGHTS = 2**28

Hook = tuple[nn.Module, str, Callable[[Tensor], None]]


@dataclass
class ChannelGates:
    """The gates of a channel attention, and the statistics of the maps that it gates; each `(C_u,)`.

    Attributes:
        gate: Of each channel; in [0, 1], of GCT in [0, 2].
        mean: Of the channel's map.
        std: Its unbiased standard deviation, which the Gaussian attention reads beside the mean.
    """

    gate: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass
class BlockShares:
    """What the parts of a block carry and change; norms are over all values of the maps of one picture.

    Attributes:
        mixer: Class of the mixer.
        channels: `C` of the block.
        convolved: Share of the channels that the mixer convolves, 1 if all.
        energy_in: Share of the squares of what goes into the mixer that lies in the convolved channels.
        energy_out: The same of what comes out, after the mixer's own norm.
        channel_gates: Relative change `|g x - x| / |x|` that the channel gates make; None without gates.
        spatial_gates: The same of the spatial gate.
        mixer_over_input: Norm of the mixer's output over that of its input.
        added: Norm of what the block adds to its input, over the input's.
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
    """What a network did with one picture. Blocks are labelled by stage and number, from `"1.1"`.

    Attributes:
        logits: `(classes,)`.
        spatial_gates: Of each block, `(h, w)` in [0, 1], the map that gates half of the channels (all, of `Full_sp`).
        channel_gates: Of each block.
        attention: Of each block, `(heads, h, w, h, w)`, the weights from a query cell (the first `h, w`) to the key
            cells (the last), which sum to 1.
        shares: Of each block.
        missing: A sentence for each thing that is not there to be seen.
    """

    logits: np.ndarray
    spatial_gates: dict[str, np.ndarray] = field(default_factory=dict)
    channel_gates: dict[str, ChannelGates] = field(default_factory=dict)
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    shares: dict[str, BlockShares] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def as_array(x: Tensor) -> np.ndarray:
    """`x` as an array of its own, in float32 or wider."""
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).cpu().numpy().copy()


def _change(x: Tensor, gated: Tensor) -> float:
    """`|gated - x| / |x|`, 0 where there is nothing."""
    norm = float(x.float().norm())
    return float((gated.float() - x.float()).norm()) / norm if norm > 0 else 0.0


def _gated_channels(spatial: Any, x: Tensor) -> Tensor:
    """The channels of `x` that a spatial attention gates."""
    if isinstance(spatial, FusedPAT_sp):
        return x[:, spatial.keep.flatten() == 0]
    return x[:, : spatial.split[0]] if hasattr(spatial, "split") else x


class _SpatialGate:
    """Takes the map of a block's spatial attention."""

    def __init__(self, layer: Layer, seen: Inspection, changes: dict[str, float]) -> None:
        self.label, self.module, self.seen, self.changes = layer.label, layer.module, seen, changes
        self.x: Any = None

    def hooks(self) -> list[Hook]:
        if isinstance(self.module, PAT_cbam):  # whose map is made within timm's module
            return [(self.module, "input", self.keep), (self.module.attn.gate, "output", self.take)]
        return [(self.module, "input", self.keep)]

    def keep(self, x: Tensor) -> None:
        self.x = _gated_channels(self.module, x)
        if not isinstance(self.module, PAT_cbam):
            self.take(self.module.gate(x if isinstance(self.module, FusedPAT_sp) else self.x))

    def take(self, gate: Tensor) -> None:
        self.seen.spatial_gates[self.label] = as_array(gate[0, 0])
        self.changes[self.label] = _change(self.x, gate * self.x)


class _ChannelGate:
    """Takes the gates of a block's channel attention."""

    def __init__(self, layer: Layer, seen: Inspection, changes: dict[str, float]) -> None:
        self.label, self.module, self.seen, self.changes = layer.label, layer.module.attn, seen, changes
        self.x: Any = None

    def hooks(self) -> list[Hook]:
        if isinstance(self.module.gate, nn.Module):  # timm's: the activation that gives the gates
            return [(self.module, "input", self.keep), (self.module.gate, "output", self.take)]
        return [(self.module, "input", self.keep)]

    def keep(self, x: Tensor) -> None:
        self.x = x
        if not isinstance(self.module.gate, nn.Module):
            self.take(self.module.gate(x))

    def take(self, gate: Tensor) -> None:
        mean, std = spatial_mean_std(self.x)
        self.seen.channel_gates[self.label] = ChannelGates(*(as_array(v.flatten()) for v in (gate, mean, std)))
        self.changes[self.label] = _change(self.x, gate.view(1, -1, 1, 1) * self.x)


class _Attention:
    """Takes the weights of a block's self-attention."""

    def __init__(self, layer: Layer, seen: Inspection) -> None:
        self.label, self.module, self.seen = layer.label, layer.module, seen

    def hooks(self) -> list[Hook]:
        if isinstance(self.module, PAT_sf | FusedPAT_sf):
            return [(self.module, "input", lambda x: self.take(self.module, x[:, self.module.split[0] :]))]
        if isinstance(self.module, Full_sf | FusedFull_sf):
            return [(self.module.conv, "output", lambda x: self.take(self.module, x))]
        return [(self.module.attn, "input", lambda x: self.take(self.module.attn, x))]

    def take(self, module: Any, x: Tensor) -> None:
        _, _, height, width = x.shape
        if module.num_heads * (height * width) ** 2 > MOST_WEIGHTS:
            self.seen.missing.append(
                f"The attention of block {self.label} has {module.num_heads}x{height * width}x{height * width} "
                "weights, too many to keep: give a smaller picture."
            )
            return
        weights = module.attention(x)
        if isinstance(module, WindowAttention):
            weights = _over_map(weights, module, x)
        self.seen.attention[self.label] = as_array(weights.reshape(-1, height, width, height, width))


def _over_map(weights: Tensor, module: WindowAttention, x: Tensor) -> Tensor:
    """Weights within windows, `(windows, heads, side^2, side^2)`, as weights over the map, `(heads, h, w, h, w)`."""
    side, (rows, cols) = module.window_size, module.tiling(x)
    heads = module.num_heads
    whole = weights.new_zeros(heads, rows * side, cols * side, rows * side, cols * side)
    for number, window in enumerate(weights.view(-1, heads, side, side, side, side)):
        down, right = (slice(i * side, (i + 1) * side) for i in divmod(number, cols))
        whole[:, down, right, down, right] = window
    _, _, height, width = x.shape
    return whole[:, :height, :width, :height, :width]


class _Shares:
    """Takes what goes into a block and its mixer, and what comes out."""

    def __init__(self, layer: Layer) -> None:
        self.label, self.block = layer.label, layer.module
        self.energies: dict[str, Any] = {}
        self.x: Any = None

    def hooks(self) -> list[Hook]:
        return [
            (self.block, "input", self.keep),
            (self.block.mixer, "output", lambda y: self.energies.update(out=y.float().square().sum((0, 2, 3)))),
            (self.block, "output", self.compare),
        ]

    def keep(self, x: Tensor) -> None:
        self.x = x
        self.energies["in"] = x.float().square().sum((0, 2, 3))  # (C,)

    def compare(self, y: Tensor) -> None:
        self.added = _change(self.x, y)

    def result(self, channel_gates: float | None, spatial_gates: float | None) -> BlockShares:
        channels = len(self.energies["in"])
        convolved = getattr(self.block.mixer, "split", [channels])[0]
        before, after = (float(self.energies[side].sum()) for side in ("in", "out"))
        return BlockShares(
            mixer=type(self.block.mixer).__name__,
            channels=channels,
            convolved=convolved / channels,
            energy_in=float(self.energies["in"][:convolved].sum()) / before if before > 0 else 0.0,
            energy_out=float(self.energies["out"][:convolved].sum()) / after if after > 0 else 0.0,
            channel_gates=channel_gates,
            spatial_gates=spatial_gates,
            mixer_over_input=(after / before) ** 0.5 if before > 0 else 0.0,
            added=self.added,
        )


def inspect_network(model: nn.Module, picture: Tensor) -> Inspection:
    """Look at what a network does with one picture, in evaluation mode.

    Nothing stays behind: hooks are removed, and every module's mode is restored. Gates, attention and shares are of
    the blocks of `patnet.nn`, wherever they stand in the network; of any other network there are the logits alone.

    Args:
        model: The network, fused or not, on any device.
        picture: `(1, in_chans, H, W)`, preprocessed.

    Returns:
        What there is to be seen, with a sentence in `missing` for each thing that is not there.

    Raises:
        InputError: If the picture is not one, has other channels than the network takes, or is too small for it.
    """
    if picture.ndim != 4 or len(picture) != 1:
        raise InputError(f"give one picture, (1, in_chans, H, W), not {tuple(picture.shape)}")
    seen = Inspection(np.empty(0))
    channel_changes: dict[str, float] = {}
    spatial_changes: dict[str, float] = {}
    spatial: Any = (PAT_sp, Full_sp, PAT_cbam, FusedPAT_sp)
    channel: Any = (PAT_ch, Full_ch)
    attending: Any = (PAT_sf, Full_sf, FusedPAT_sf, FusedFull_sf, PartialAttention, FullAttention)
    blocks = [_Shares(layer) for layer in find_layers(model, PATBlock)]
    takers: list[Any] = [
        *(_SpatialGate(layer, seen, spatial_changes) for layer in find_layers(model, spatial)),
        *(
            _ChannelGate(layer, seen, channel_changes)
            for layer in find_layers(model, channel)
            if hasattr(layer.module.attn, "gate")
        ),
        *(
            _Attention(layer, seen)
            for layer in find_layers(model, attending)
            if hasattr(getattr(layer.module, "attn", layer.module), "attention")
        ),
        *blocks,
    ]
    like = next(model.parameters(), picture)
    with listening(model, [hook for taker in takers for hook in taker.hooks()]):
        try:
            logits = model(picture.to(like.device, like.dtype))
        except (AssertionError, RuntimeError) as error:
            shape = "x".join(map(str, picture.shape[1:]))
            raise InputError(f"the network does not take a picture of {shape} ({_first_line(error)})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError("the network gives no logits (1, classes): give a classifier")
    seen.logits = as_array(logits[0])
    for block in blocks:
        seen.shares[block.label] = block.result(channel_changes.get(block.label), spatial_changes.get(block.label))
    seen.missing += _missing(model, seen)
    return seen


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _missing(model: nn.Module, seen: Inspection) -> list[str]:
    """A sentence for each thing that is not there, and what is to know of a fused network."""
    kinds = {type(module) for module in model.modules()}
    if not (seen.shares or seen.spatial_gates or seen.channel_gates or seen.attention):
        return [f"{type(model).__name__} holds no block of PATNet's, so there are no gates, attention or shares."]
    said = []
    if not seen.spatial_gates:
        said.append("No spatial gates: no MLP here has a spatial attention.")
    if not seen.channel_gates:
        where = "PAT_ch has no channel attention" if kinds & {PAT_ch, Full_ch} else "no mixer here is PAT_ch"
        said.append(f"No channel gates: {where}.")
    if not seen.attention and not seen.missing:
        where = (
            "large-kernel attention has no weights between positions"
            if LargeKernelAttention in kinds
            else "no mixer here is PAT_sf"
        )
        said.append(f"No self-attention: {where}.")
    if kinds & {FusedConv2d, FusedLinear}:
        said.append(
            "The network is fused: norms after convolutions and gates are no longer there to be told apart from what "
            "follows, nor is the mixed half of PAT_sp, which is within the MLP's second convolution; a mixer's "
            "output is taken before its norm."
        )
    return said
