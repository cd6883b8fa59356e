"""PAT_sp: partial spatial attention, inside the MLP."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import FusedPAT_sp, affine_of, as_affine, exact, fold, make_conv, with_parts
from .norm import BatchNorm2d
from .partial_conv import split_channels

__all__ = ["PAT_sp"]


class PAT_sp(nn.Module):
    """Partial spatial attention: one map gates the first half of the channels, a 1x1 convolution mixes the other.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), section on PAT_sp.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is gated.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.5,
        *,
        norm_layer: Callable[..., nn.Module] = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.split = list(split_channels(dim, partial_ratio))
        gated, mixed = self.split
        self.gate_conv = nn.Conv2d(gated, 1, 1, bias=False, device=device, dtype=dtype)
        self.gate_norm = norm_layer(gated, device=device, dtype=dtype)
        self.norm = norm_layer(mixed, device=device, dtype=dtype)
        self.conv = nn.Conv2d(mixed, mixed, 1, bias=False, device=device, dtype=dtype)

    def gate(self, x1: Tensor) -> Tensor:
        """The map that gates the first half `x1`, `(N, 1, H, W)` in [0, 1]."""
        return F.hardsigmoid(self.gate_conv(x1))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.gate_norm(self.gate(x1) * x1)
        y2 = self.conv(self.norm(x2))
        return torch.cat((y1, y2), dim=1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the mixed half's norm folded, and the gate's norm a scale and a shift."""
        affine = affine_of(self.norm)
        if affine is None:
            return self
        return with_parts(
            self,
            gate_norm=as_affine(self.gate_norm, self.conv.weight),
            norm=nn.Identity(),
            conv=fold(self.conv, before=affine),
        )

    def fuse_into(self, conv: nn.Conv2d) -> tuple[nn.Conv2d, nn.Module] | None:
        """One convolution for `conv` and the mixed half, and what is left to do after it.

        The map stays a convolution of its own, of the gated half: as one more output row of `conv` it would leave a
        number of rows that no kernel is made for, which costs more than reading that half once.

        Args:
            conv: The 1x1 convolution, without bias, whose output this block takes.

        Returns:
            None if a norm depends on its input, and so cannot be folded.
        """
        gate_affine, affine = affine_of(self.gate_norm), affine_of(self.norm)
        if gate_affine is None or affine is None or conv.bias is not None:
            return None
        (gate_scale, gate_shift), (scale, shift) = gate_affine, affine
        gated, mixed = exact(conv.weight).flatten(1).split(self.split)  # (C / 2, inputs) each
        mix = exact(self.conv.weight).flatten(1)
        rows = torch.cat((gated, mix @ (scale.unsqueeze(1) * mixed)))
        zeros = torch.zeros_like(scale)
        fused = make_conv(conv, rows[..., None, None], torch.cat((torch.zeros_like(gate_scale), mix @ shift)))
        gate_row = torch.cat((exact(self.gate_conv.weight).flatten(), zeros)).view(1, -1, 1, 1)
        after = FusedPAT_sp(
            make_conv(self.gate_conv, gate_row),
            scale=torch.cat((gate_scale, zeros)).to(conv.weight),
            keep=torch.cat((torch.zeros_like(gate_scale), torch.ones_like(scale))).to(conv.weight),
            shift=torch.cat((gate_shift, zeros)).to(conv.weight),
        )
        return fused, after.eval()
