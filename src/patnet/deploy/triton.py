"""Triton kernels for GPUs in half precision: the blocks of a fused PATNet in few launches.

On a GPU the many small operations of a block take longer than its convolutions, since each reads and writes the map.
Here one kernel reads a tile of positions and writes the block's output: the 3x3 convolution of the first channels, the
gates of the others, the MLP, the spatial gate and the shortcut. Two small ones compute the gates. In wide stages, whose
weights do not fit beside a tile, the products are the library's, and the kernels are what is between them.

All maps are channels-last, `(N * H * W, C)` in memory. FasterNet's blocks get the same kernels, for comparison.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from timm.layers import GELU, LayerNorm2d
from timm.models.fasternet import MLPBlock, PatchEmbed
from torch import Tensor, nn

from ..models.network import ConvNorm
from ..nn import FusedPAT_sf, PAT_ch, PATBlock, PATResidualBlock
from ..nn.channel_attention import FusedGaussianChannelAttention
from ..nn.spatial_attention import FusedPAT_sp

__all__ = ["with_kernels"]

CHUNK = 256  # positions whose mean and variance one program computes
MAX_TOKENS = 256  # of the attention kernel, which holds all keys of a head
# Positions of a tile, hidden channels of a step, warps and pipeline stages by the width of a tile; wider do not fit.
TILES = {16: (128, 64, 4, 2), 32: (128, 64, 4, 2), 64: (128, 64, 4, 2), 128: (64, 64, 4, 2)}


@triton.jit
def _statistics_kernel(x, partial, positions, C, first, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Mean and sum of squared differences of the channels from `first` on over a chunk: `(N, chunks, 2, C - first)`."""
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
    channels = tl.program_id(1) * COLS + tl.arange(0, COLS)
    rows = chunk * ROWS + tl.arange(0, ROWS)
    taken = (rows < positions)[:, None] & (channels < C - first)[None, :]
    at = (image * positions + rows)[:, None] * C + (first + channels)[None, :]
    values = tl.load(x + at, mask=taken, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / tl.minimum(positions - chunk * ROWS, ROWS)
    differences = tl.where(taken, values - mean[None, :], 0.0)
    out = partial + (image * tl.num_programs(2) + chunk) * 2 * (C - first) + channels
    tl.store(out, mean, mask=channels < C - first)
    tl.store(out + C - first, tl.sum(differences * differences, 0), mask=channels < C - first)


@triton.jit
def _gates_kernel(
    partial, weight, bias, gates, positions, C, first, chunks,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, COLS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gates `(N, C)` from the chunks' statistics; those of the first channels are those of the bias."""
    image = tl.program_id(0).to(tl.int64)
    attended = C - first
    columns = tl.program_id(1) * COLS + tl.arange(0, COLS)
    gate = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    partial += image * chunks * 2 * attended
    for start in range(0, attended, STEP):
        channels = start + tl.arange(0, STEP)
        inside = channels < attended
        mean = tl.zeros((STEP,), tl.float32)
        for begin in range(0, chunks, CHUNKS):
            chunk = begin + tl.arange(0, CHUNKS)
            count = tl.minimum(tl.maximum(positions - chunk * ROWS, 0), ROWS).to(tl.float32)
            taken = (chunk < chunks)[:, None] & inside[None, :]
            at = chunk[:, None] * 2 * attended + channels[None, :]
            mean += tl.sum(tl.load(partial + at, mask=taken, other=0.0) * count[:, None], 0)
        mean /= positions
        squares = tl.zeros((STEP,), tl.float32)
        for begin in range(0, chunks, CHUNKS):
            chunk = begin + tl.arange(0, CHUNKS)
            count = tl.minimum(tl.maximum(positions - chunk * ROWS, 0), ROWS).to(tl.float32)
            taken = (chunk < chunks)[:, None] & inside[None, :]
            at = chunk[:, None] * 2 * attended + channels[None, :]
            apart = tl.load(partial + at, mask=taken, other=0.0) - mean[None, :]
            within = tl.load(partial + at + attended, mask=taken, other=0.0)
            squares += tl.sum(within + apart * apart * count[:, None], 0)
        std = tl.sqrt(squares / tl.maximum(positions - 1, 1))
        row = weight + columns[:, None] * 2 * attended + channels[None, :]
        taken = (columns < C)[:, None] & inside[None, :]
        gate += tl.sum(tl.load(row, mask=taken, other=0.0).to(tl.float32) * mean[None, :], 1)
        gate += tl.sum(tl.load(row + attended, mask=taken, other=0.0).to(tl.float32) * std[None, :], 1)
    gate = tl.minimum(tl.maximum(gate, 0.0), 1.0)
    tl.store(gates + image * C + columns, gate.to(gates.dtype.element_ty), mask=columns < C)


@triton.jit
def _block_kernel(
    x, y, conv, gates, weight1, bias1, weight2, bias2, gate_weight, scale, keep, shift,
    total, H, W, C, HIDDEN, gate_bias,
    CONV: tl.constexpr, GATED: tl.constexpr, SPATIAL: tl.constexpr, GELU: tl.constexpr,
    CP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The output of a block at `ROWS` positions."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < total
    columns = tl.arange(0, WIDTH)
    taken = inside[:, None] & (columns < C)[None, :]
    at = rows.to(tl.int64)[:, None] * C + columns[None, :]
    mixed = tl.load(x + at, mask=taken, other=0.0)
    dtype = mixed.dtype
    if GATED:
        gate = tl.load(gates + (rows // (H * W))[:, None] * C + columns[None, :], mask=taken, other=0.0)
        mixed = (mixed.to(tl.float32) * gate.to(tl.float32)).to(dtype)
    part = tl.arange(0, CP)
    if CONV:
        row, col = rows // W % H, rows % W
        convolved = tl.zeros((ROWS, CP), tl.float32)
        for tap in tl.static_range(9):
            down, right = tap // 3 - 1, tap % 3 - 1
            near = inside & (row + down >= 0) & (row + down < H) & (col + right >= 0) & (col + right < W)
            neighbour = (rows + down * W + right).to(tl.int64)[:, None] * C + part[None, :]
            values = tl.load(x + neighbour, mask=near[:, None] & (part < C)[None, :], other=0.0)
            kernel = tl.load(conv + tap * CP * CP + part[:, None] * CP + part[None, :])
            convolved = tl.dot(values, kernel, convolved)
        first = convolved.to(dtype)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    hidden = tl.arange(0, STEP)
    for start in range(0, HIDDEN, STEP):
        w1 = tl.load(weight1 + columns[:, None] * HIDDEN + (start + hidden)[None, :])
        h = tl.dot(mixed, w1)
        if CONV:
            w0 = tl.load(weight1 + (WIDTH + part)[:, None] * HIDDEN + (start + hidden)[None, :])
            h = tl.dot(first, w0, h)
        h += tl.load(bias1 + start + hidden)[None, :]
        if GELU:  # noqa: SIM108  # decided when the kernel is compiled
            h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
        else:
            h = tl.maximum(h, 0.0)
        w2 = tl.load(weight2 + (start + hidden)[:, None] * WIDTH + columns[None, :])
        acc = tl.dot(h.to(dtype), w2, acc)
    acc += tl.load(bias2 + columns)[None, :]
    if SPATIAL:
        s = tl.sum(acc * tl.load(gate_weight + columns)[None, :], 1) + gate_bias
        s = tl.minimum(tl.maximum(s, 0.0), 1.0)
        acc *= s[:, None] * tl.load(scale + columns)[None, :] + tl.load(keep + columns)[None, :]
        acc += tl.load(shift + columns)[None, :]
    acc += tl.load(x + at, mask=taken, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(dtype), mask=taken)


@triton.jit
def _join_kernel(
    x, convolved, others, gates, y, total, positions, C, first,
    GATED: tl.constexpr, SHORTCUT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The convolved channels beside the others: gated channels of `x`, or with `SHORTCUT` `others`, and `x` added."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLS + tl.arange(0, COLS)
    taken = (rows < total)[:, None] & (columns < C)[None, :]
    is_first = (columns < first)[None, :]
    rows = rows.to(tl.int64)
    at = rows[:, None] * C + columns[None, :]
    values = tl.load(x + at, mask=taken, other=0.0).to(tl.float32)
    beside = tl.load(convolved + rows[:, None] * first + columns[None, :], mask=taken & is_first, other=0.0)
    if SHORTCUT:
        other = rows[:, None] * (C - first) + (columns - first)[None, :]
        rest = values + tl.load(others + other, mask=taken & (columns >= first)[None, :], other=0.0).to(tl.float32)
        joined = tl.where(is_first, values + beside.to(tl.float32), rest)
    else:
        if GATED:
            gate = tl.load(gates + (rows // positions)[:, None] * C + columns[None, :], mask=taken, other=0.0)
            values *= gate.to(tl.float32)
        joined = tl.where(is_first, beside.to(tl.float32), values)
    tl.store(y + at, joined.to(y.dtype.element_ty), mask=taken)


@triton.jit
def _spatial_kernel(
    x, z, y, gate_weight, scale, keep, shift, total, C, gate_bias,
    SPATIAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The spatial gate of `z`, and the shortcut from `x`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    taken = (rows < total)[:, None] & (columns < C)[None, :]
    at = rows.to(tl.int64)[:, None] * C + columns[None, :]
    values = tl.load(z + at, mask=taken, other=0.0).to(tl.float32)
    if SPATIAL:
        s = tl.sum(values * tl.load(gate_weight + columns)[None, :], 1) + gate_bias
        s = tl.minimum(tl.maximum(s, 0.0), 1.0)
        values *= s[:, None] * tl.load(scale + columns)[None, :] + tl.load(keep + columns)[None, :]
        values += tl.load(shift + columns)[None, :]
    values += tl.load(x + at, mask=taken, other=0.0).to(tl.float32)
    tl.store(y + at, values.to(y.dtype.element_ty), mask=taken)


@triton.jit
def _norm_kernel(x, y, total, C, first, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The channels from `first` on, less their mean and over their std at each position: `(positions, C - first)`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    attended = C - first
    taken = (rows < total)[:, None] & (columns < attended)[None, :]
    rows = rows.to(tl.int64)[:, None]
    values = tl.load(x + rows * C + first + columns[None, :], mask=taken, other=0.0).to(tl.float32)
    values = tl.where(taken, values - (tl.sum(values, 1) / attended)[:, None], 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 1) / attended + eps)[:, None]
    tl.store(y + rows * attended + columns[None, :], values.to(y.dtype.element_ty), mask=taken)


@triton.jit
def _attention_kernel(
    qkv, bias, y, tokens, HEAD: tl.constexpr, BIASED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Self-attention of `ROWS` queries of a head, from `(N, tokens, 3, heads, HEAD)` to `(N, tokens, heads, HEAD)`."""
    image, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
    columns = tl.arange(0, WIDTH)
    attended = heads * HEAD
    qkv += image * tokens * 3 * attended + head * HEAD
    inside = columns < HEAD
    query = (rows < tokens)[:, None] & inside[None, :]
    key = (keys < tokens)[:, None] & inside[None, :]
    q = tl.load(qkv + rows[:, None] * 3 * attended + columns[None, :], mask=query, other=0.0)
    k = tl.load(qkv + attended + keys[:, None] * 3 * attended + columns[None, :], mask=key, other=0.0)
    v = tl.load(qkv + 2 * attended + keys[:, None] * 3 * attended + columns[None, :], mask=key, other=0.0)
    logits = tl.dot(q, tl.trans(k))
    if BIASED:
        pair = (rows < tokens)[:, None] & (keys < tokens)[None, :]
        at = bias + (head * tokens + rows)[:, None] * tokens + keys[None, :]
        logits += tl.load(at, mask=pair, other=0.0).to(tl.float32)
    logits = tl.where((keys < tokens)[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    weights /= tl.sum(weights, 1)[:, None]
    out = tl.dot(weights.to(v.dtype), v)
    at = (image * tokens + rows)[:, None] * attended + head * HEAD + columns[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=query)


def _rows_of(x: Tensor) -> Tensor:
    """A channels-last map `(N, C, H, W)` as `(N * H * W, C)`."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _bias_of(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()


class Gates(nn.Module):
    """The gates of a `PAT_ch`, in two launches.

    Shapes: `(N, C, H, W)` in channels-last to `(N, C)`; those of the first, convolved channels have no meaning.
    """

    def __init__(self, attention: FusedGaussianChannelAttention, first: int) -> None:
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(F.pad(attention.mix.weight.detach(), (0, 0, first, 0)), requires_grad=False)
        self.bias = nn.Parameter(F.pad(attention.mix.bias.detach(), (first, 0)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        attended, positions = dim - self.first, height * width
        columns, chunks = 32, triton.cdiv(positions, CHUNK)
        partial = torch.empty((batch, chunks, 2, attended), device=x.device, dtype=torch.float32)
        grid = (batch, triton.cdiv(attended, columns), chunks)
        _statistics_kernel[grid](x, partial, positions, dim, self.first, ROWS=CHUNK, COLS=columns, num_warps=8)
        gates = x.new_empty(batch, dim)
        _gates_kernel[(batch, triton.cdiv(dim, 32))](
            partial, self.weight, self.bias, gates, positions, dim, self.first, chunks,
            ROWS=CHUNK, CHUNKS=min(16, triton.next_power_of_2(chunks)), COLS=32, STEP=64, num_warps=4,
        )  # fmt: skip
        return gates


class Block(nn.Module):
    """A block, from its input to its output.

    Shapes: `(N, C, H, W)` in channels-last to the same.

    Args:
        conv: The 3x3 convolution of the first channels; None if the MLP takes `x` itself.
        gate: The channel attention of the others.
        mlp: Its 1x1 convolutions, and the activation between them.
        spatial: The spatial gate at its end.
    """

    def __init__(
        self,
        conv: nn.Conv2d | None,
        gate: FusedGaussianChannelAttention | None,
        mlp: tuple[nn.Conv2d, nn.Module, nn.Conv2d],
        spatial: FusedPAT_sp | None,
    ) -> None:
        super().__init__()
        conv1, act, conv2 = mlp
        hidden, dim = conv1.weight.shape[:2]
        self.first = conv.in_channels if conv else 0
        self.gates = Gates(gate, self.first) if gate else None
        self.gelu = not isinstance(act, nn.ReLU)
        self.part, self.width = (max(16, triton.next_power_of_2(channels)) for channels in (self.first, dim))
        self.tile = TILES.get(self.width)
        self.spatial = spatial is not None
        self.gate_bias = float(spatial.gate_conv.bias) if spatial else 0.0  # type: ignore[arg-type]
        like = conv1.weight

        def hold(name: str, value: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
            """Register a tensor of this shape, zero beyond the value."""
            padded = torch.zeros(shape, device=like.device, dtype=dtype or like.dtype)
            padded[tuple(slice(length) for length in value.shape)] = value
            self.register_buffer(name, padded, persistent=False)
            return padded

        if spatial:
            for name in ("scale", "keep", "shift"):
                hold(name, getattr(spatial, name).detach().flatten(), self.width, dtype=torch.float32)
            hold("gate_weight", spatial.gate_conv.weight.detach().flatten(), self.width, dtype=torch.float32)
        if self.tile is None:
            self.conv, self.conv1, self.conv2 = conv, conv1, conv2
            hold("bias1", _bias_of(conv1), hidden)
            hold("bias2", _bias_of(conv2), dim)
            return
        if conv:
            hold("taps", conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1), 9, self.part, self.part)
        self.hidden = -hidden // self.tile[1] * -self.tile[1]  # a multiple of the step
        weight1 = conv1.weight.detach().flatten(1).T.clone()  # (C, hidden)
        convolved = weight1[: self.first].clone()
        weight1[: self.first] = 0  # the convolved channels come after the others
        whole = hold("weight1", weight1, self.width + self.part, self.hidden)
        whole[self.width : self.width + self.first, :hidden] = convolved
        hold("bias1", _bias_of(conv1), self.hidden, dtype=torch.float32)
        hold("weight2", conv2.weight.detach().flatten(1).T, self.hidden, self.width)
        hold("bias2", _bias_of(conv2), self.width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        gates = self.gates(x) if self.gates else x
        y = torch.empty_like(x)
        batch, dim, height, width = x.shape
        total = batch * height * width
        unused = self.bias2
        spatial = (self.gate_weight, self.scale, self.keep, self.shift) if self.spatial else (unused,) * 4
        if self.tile is None:
            z = self._mlp(self._mixed(x, gates) if self.first else x)
            rows, warps = 16, 4
            _spatial_kernel[(triton.cdiv(total, rows),)](
                x, z, y, *spatial, total, dim, self.gate_bias,
                SPATIAL=self.spatial, ROWS=rows, WIDTH=self.width, num_warps=warps,
            )  # fmt: skip
            return y
        rows, step, warps, stages = self.tile
        _block_kernel[(triton.cdiv(total, rows),)](
            x, y, self.taps if self.first else unused, gates, self.weight1, self.bias1, self.weight2, self.bias2,
            *spatial, total, height, width, dim, self.hidden, self.gate_bias,
            CONV=self.first > 0, GATED=self.gates is not None, SPATIAL=self.spatial, GELU=self.gelu,
            CP=self.part, WIDTH=self.width, ROWS=rows, STEP=step, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return y

    def _mixed(self, x: Tensor, gates: Tensor) -> Tensor:
        """The convolved and the gated channels."""
        conv: Any = self.conv
        return join(x, conv(x[:, : self.first]), gates=gates if self.gates else None)

    def _mlp(self, mixed: Tensor) -> Tensor:
        """The MLP, `(N * H * W, C)`."""
        block: Any = self
        rows, weight1, weight2 = _rows_of(mixed), block.conv1.weight.flatten(1), block.conv2.weight.flatten(1)
        if self.gelu:
            hidden = F.gelu(torch.addmm(block.bias1, rows, weight1.T))
        else:
            hidden = torch._addmm_activation(block.bias1, rows, weight1.T)
        return torch.addmm(block.bias2, hidden, weight2.T)


def join(x: Tensor, convolved: Tensor, *, gates: Tensor | None = None, others: Tensor | None = None) -> Tensor:
    """The convolved channels beside the others of `x`, gated; or beside `others`, with `x` added to both."""
    convolved = convolved.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    batch, dim, height, width = x.shape
    total, rows, columns = batch * height * width, 32, 64
    _join_kernel[(triton.cdiv(total, rows), triton.cdiv(dim, columns))](
        x, convolved, x if others is None else others, x if gates is None else gates, y,
        total, height * width, dim, convolved.shape[1],
        GATED=gates is not None, SHORTCUT=others is not None, ROWS=rows, COLS=columns, num_warps=4,
    )  # fmt: skip
    return y


class SelfAttention(nn.Module):
    """`x + mixer(x)` of a `FusedPAT_sf` with a LayerNorm before its attention.

    Shapes: `(N, C, H, W)` in channels-last to the same.
    """

    def __init__(self, mixer: FusedPAT_sf) -> None:
        super().__init__()
        self.mixer = mixer
        self.eps = mixer.norm.eps
        self.biases: dict[tuple[int, int], Tensor] = {}

    def bias(self, x: Tensor) -> Tensor | None:
        """The position term for a size of the map, `(heads, H * W, H * W)`."""
        size = x.shape[2], x.shape[3]
        if self.mixer.position is None:
            return None
        if size not in self.biases:
            self.biases[size] = self.mixer.position(x.new_empty(1, 1, 1, 1), *size)[0].contiguous()
        return self.biases[size]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        mixer: Any = self.mixer
        first, attended = mixer.split
        batch, dim, height, width = x.shape
        tokens, total = height * width, batch * height * width
        normed = x.new_empty(total, attended)
        _norm_kernel[(triton.cdiv(total, 8),)](
            x, normed, total, dim, first, self.eps, ROWS=8, WIDTH=triton.next_power_of_2(attended), num_warps=4
        )
        qkv = torch.addmm(mixer.qkv.bias, normed, mixer.qkv.weight.flatten(1).T)
        y = self._attend(qkv, batch, tokens, self.bias(x))
        others = torch.addmm(mixer.proj.bias, y, mixer.proj.weight.flatten(1).T)
        return join(x, mixer.conv(x[:, :first]), others=others)

    def _attend(self, qkv: Tensor, batch: int, tokens: int, bias: Tensor | None) -> Tensor:
        heads, head = self.mixer.num_heads, self.mixer.head_dim
        if tokens > MAX_TOKENS:
            q, k, v = qkv.view(batch, tokens, 3, heads, head).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[None], scale=1.0)
            return y.transpose(1, 2).reshape(batch * tokens, heads * head)
        y = qkv.new_empty(batch * tokens, heads * head)
        keys = max(16, triton.next_power_of_2(tokens))
        rows = min(64, keys)
        _attention_kernel[(batch, heads, triton.cdiv(tokens, rows))](
            qkv, qkv if bias is None else bias, y, tokens, HEAD=head, BIASED=bias is not None,
            ROWS=rows, KEYS=keys, WIDTH=max(16, triton.next_power_of_2(head)), num_warps=4,
        )  # fmt: skip
        return y


class Patches(nn.Module):
    """A convolution whose stride is its kernel size, as a matrix product of the patches.

    Shapes: as of the convolution; the output in channels-last.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.size = conv.kernel_size[0]
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).T.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(_bias_of(conv), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        rows, cols = height // self.size, width // self.size
        x = x[:, :, : rows * self.size, : cols * self.size].reshape(batch, dim, rows, self.size, cols, self.size)
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(batch * rows * cols, -1)
        return torch.addmm(self.bias, patches, self.weight).view(batch, rows, cols, -1).permute(0, 3, 1, 2)


def _block_of(module: nn.Module) -> nn.Module | None:
    """The kernels of a fused block; None if there are none for its parts."""
    conv, gate, spatial = None, None, None
    mlp: Any
    if isinstance(module, MLPBlock):  # timm's FasterNet
        mlp = module.mlp
        conv1, norm, act, conv2 = mlp
        if not isinstance(norm, nn.Identity) or module.layer_scale is not None:  # not folded
            return None
        conv = module.spatial_mixing.partial_conv3
    elif isinstance(module, PATBlock):
        mlp = module.mlp
        conv1, act, conv2, spatial = mlp.conv1, mlp.act, mlp.conv2, mlp.attn
        mixer: Any = module.mixer
        if not isinstance(module, PATResidualBlock):
            if not isinstance(mixer, PAT_ch) or mixer.full or not isinstance(mixer.attn, FusedGaussianChannelAttention):
                return None
            conv, gate = mixer.conv, mixer.attn
    else:
        return None
    if not isinstance(act, nn.ReLU | nn.GELU | GELU) or not (spatial is None or isinstance(spatial, FusedPAT_sp)):
        return None
    block = Block(conv, gate, (conv1, act, conv2), spatial)
    if not isinstance(module, PATResidualBlock):
        return block
    contextual = getattr(mixer.position, "contextual", False) if isinstance(mixer, FusedPAT_sf) else True
    if contextual or mixer.full or not isinstance(mixer.norm, LayerNorm2d):
        return None
    return nn.Sequential(SelfAttention(mixer), block)


def with_kernels(model: nn.Module) -> nn.Module:
    """A copy of a fused network in half precision on a GPU, in which kernels take the place of the blocks they fit."""
    found = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for name, module in list(found.named_modules()):
        if (block := _block_of(module)) is not None:
            found.set_submodule(name, block)
        elif isinstance(module, ConvNorm | PatchEmbed):
            name += ".conv" if isinstance(module, ConvNorm) else ".proj"
            conv: Any = found.get_submodule(name)
            if conv.in_channels < 16:  # a convolution of few channels takes several times as long
                found.set_submodule(name, Patches(conv))
    return found
