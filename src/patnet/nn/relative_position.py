"""Image relative position encoding (iRPE): a learned term of the attention logits for each offset.

From Wu et al., ICCV 2021 (arXiv 2107.14222), equations 15 to 20, in its bias and contextual modes on the keys.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from .table import one_of

__all__ = [
    "POSITION_METHODS",
    "POSITION_MODES",
    "IndexCache",
    "RelativePosition",
    "index_cache",
    "offset_buckets",
    "pair_offsets",
    "piecewise_index",
    "position_buckets",
    "relative_position",
]

POSITION_METHODS = ("euclidean", "product")
POSITION_MODES = ("bias", "contextual")


def piecewise_index(distance: Tensor, alpha: float, beta: int, gamma: float) -> Tensor:
    """Index of an offset: itself up to `alpha`, logarithmic beyond, at most `beta` (equation 18 of iRPE).

    Args:
        distance: Offsets in positions of the map, any shape, float.

    Returns:
        Integer indices in `[-beta, beta]`, of the same shape.
    """
    size = distance.abs()
    far = alpha + torch.log(size.clamp_min(alpha) / alpha) / math.log(gamma / alpha) * (beta - alpha)
    far = torch.sign(distance) * far.round().clamp_max(beta)
    return torch.where(size <= alpha, distance.round(), far).long()


def offset_buckets(
    height: int, width: int, product: bool, alpha: float, beta: int, gamma: float, device: torch.device
) -> Tensor:
    """Bucket of each offset within a map, `((2 * height - 1) * (2 * width - 1),)`, rows before columns, least first.

    The Euclidean method has `2 * beta + 1` buckets, the product method `(2 * beta + 1) ** 2`.
    """
    row_offset = torch.arange(1 - height, height, device=device).float().unsqueeze(1)
    col_offset = torch.arange(1 - width, width, device=device).float().unsqueeze(0)
    if product:
        row_index = piecewise_index(row_offset, alpha, beta, gamma) + beta
        col_index = piecewise_index(col_offset, alpha, beta, gamma) + beta
        return (row_index * (2 * beta + 1) + col_index).flatten()
    distance = (row_offset.square() + col_offset.square()).sqrt().round()
    return (piecewise_index(distance, alpha, beta, gamma) + beta).flatten()


def pair_offsets(height: int, width: int, device: torch.device) -> Tensor:
    """Index in `offset_buckets` of the offset from `j` to `i`, `(height * width, height * width)` for `(i, j)`."""
    row = torch.arange(height, device=device).unsqueeze(1).expand(height, width).reshape(-1)
    col = torch.arange(width, device=device).unsqueeze(0).expand(height, width).reshape(-1)
    row_offset = row.unsqueeze(1) - row.unsqueeze(0) + (height - 1)
    col_offset = col.unsqueeze(1) - col.unsqueeze(0) + (width - 1)
    return row_offset * (2 * width - 1) + col_offset


def position_buckets(
    height: int, width: int, product: bool, alpha: float, beta: int, gamma: float, device: torch.device
) -> Tensor:
    """Bucket of each pair of positions `(i, j)` of a map, `(height * width, height * width)`.

    The offset is that from `j` to `i`.
    """
    return offset_buckets(height, width, product, alpha, beta, gamma, device)[pair_offsets(height, width, device)]


class IndexCache:
    """Results of the functions above for the sizes used last, shared by all blocks of all networks.

    Args:
        size: Number of results that are kept.
        max_bytes: Their total size.
    """

    def __init__(self, size: int, max_bytes: int) -> None:
        self.size = size
        self.max_bytes = max_bytes
        self.entries: OrderedDict[tuple, Tensor] = OrderedDict()
        self.lock = threading.Lock()  # networks may run in several threads

    def __call__(self, function: Callable[..., Tensor], *args) -> Tensor:
        key = (function, *args)
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
                return self.entries[key]
        # A tensor made in inference mode could not be saved for a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            indices = function(*args)
        # A fake tensor, or one wrapped by a transform of torch.func, is not valid afterwards either.
        if type(indices) is not Tensor or torch.func.debug_unwrap(indices) is not indices:
            return indices
        with self.lock:
            self.entries[key] = indices
            while len(self.entries) > self.size or sum(e.nbytes for e in self.entries.values()) > self.max_bytes:
                self.entries.popitem(last=False)
        return indices


index_cache = IndexCache(size=32, max_bytes=2**28)


def _look_up(function: Callable[..., Tensor], q: Tensor, *args) -> Tensor:
    """`function(*args, q.device)`, from the cache unless it is traced: there sizes may be symbols."""
    if type(q) is not Tensor or torch.compiler.is_compiling():
        return function(*args, q.device)
    return index_cache(function, *args, q.device)


@register_notrace_module
class RelativePosition(nn.Module):
    """Relative position term of the attention logits, for maps of any size.

    Bias mode: `b[h, bucket(i, j)]`, the same for every image. Contextual mode: `q_i . r[h, :, bucket(i, j)]`.
    The learned table is zero at the start, so that a new block attends by content alone.

    Shapes: `q` `(N, heads, H * W, head_dim)` to `(N, heads, H * W, H * W)`.

    Args:
        num_heads: Heads of the attention.
        head_dim: Channels of a head.
        method: `"euclidean"` or `"product"`: a bucket for each distance, or for each pair of offsets.
        mode: `"bias"` or `"contextual"`.
        alpha: Offset up to which each integer has a bucket of its own.
        beta: Largest index.
        gamma: Offset at which the largest index is reached.

    Raises:
        ValueError: If `method` or `mode` is unknown, or `alpha`, `beta` and `gamma` do not fit each other.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        method: str = "euclidean",
        mode: str = "bias",
        alpha: float = 20,
        beta: int = 40,
        gamma: float = 160,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        one_of(method, POSITION_METHODS, "position method")
        one_of(mode, POSITION_MODES, "position mode")
        if not (0 < alpha < gamma and alpha <= beta):
            raise ValueError(
                f"alpha={alpha}, beta={beta}, gamma={gamma} give no index: "
                "0 < alpha < gamma and alpha <= beta must hold"
            )
        self.product = method == "product"
        self.contextual = mode == "contextual"
        self.alpha, self.beta, self.gamma = float(alpha), beta, float(gamma)
        buckets = (2 * beta + 1) ** 2 if self.product else 2 * beta + 1
        shape = (num_heads, head_dim, buckets) if self.contextual else (num_heads, buckets)
        self.table = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def buckets(self, q: Tensor, height: int, width: int) -> Tensor:
        """Bucket of each pair of positions, `(H * W, H * W)`, on the device of `q`."""
        if torch.jit.is_scripting():
            return position_buckets(height, width, self.product, self.alpha, self.beta, self.gamma, q.device)
        return _look_up(position_buckets, q, height, width, self.product, self.alpha, self.beta, self.gamma)

    def offsets(self, q: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """`offset_buckets` and `pair_offsets` of a map, on the device of `q`."""
        if torch.jit.is_scripting():
            buckets = offset_buckets(height, width, self.product, self.alpha, self.beta, self.gamma, q.device)
            return buckets, pair_offsets(height, width, q.device)
        buckets = _look_up(offset_buckets, q, height, width, self.product, self.alpha, self.beta, self.gamma)
        return buckets, _look_up(pair_offsets, q, height, width)

    def forward(self, q: Tensor, height: int, width: int) -> Tensor:
        """The term to add to the logits.

        Args:
            q: Scaled queries `(N, heads, H * W, head_dim)`.

        Returns:
            `(N, heads, H * W, H * W)` in contextual mode, `(1, heads, H * W, H * W)` in bias mode.
        """
        table = self.table.to(q.dtype)
        if self.contextual and self.product:  # of its thousands of buckets, a map has few
            reached, pairs = self.offsets(q, height, width)
            by_offset = q @ table.index_select(2, reached)  # (N, heads, H * W, offsets)
            return by_offset.gather(3, pairs.expand(q.shape[0], q.shape[1], -1, -1))
        buckets = self.buckets(q, height, width)
        if self.contextual:
            by_bucket = q @ table  # (N, heads, H * W, buckets)
            return by_bucket.gather(3, buckets.expand(q.shape[0], q.shape[1], -1, -1))
        return table.index_select(1, buckets.flatten()).view(1, table.shape[0], height * width, height * width)


def relative_position(
    num_heads: int, head_dim: int, method: str, mode: str, *, device=None, dtype=None
) -> RelativePosition | None:
    """The position term of an attention: a `RelativePosition`, or None for the method `"none"`.

    Raises:
        ValueError: If `method` or `mode` is unknown.
    """
    one_of(method, (*POSITION_METHODS, "none"), "position method")
    one_of(mode, POSITION_MODES, "position mode")
    if method == "none":
        return None
    return RelativePosition(num_heads, head_dim, method=method, mode=mode, device=device, dtype=dtype)
