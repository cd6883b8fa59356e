"""The small networks of the mechanism tests, made of the blocks of `patnet.nn`."""

from collections.abc import Sequence
from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from patnet.nn import MIXERS, MLP, BatchNorm2d, PAT_ch

SELF_ATTENTION = {"num_heads": 2, "attn_drop": 0.0, "proj_drop": 0.0}


class Small(nn.Sequential):
    """PATNet's last stages alone: stem, stages with downsampling between, pooling, and the head.

    Initial weights are PyTorch's: with PATNet's, normal with a std of 0.02, so narrow networks start too small to learn
    the tasks in a minute.

    Shapes: `(N, in_chans, H, W)` to `(N, outputs)`.

    Args:
        in_chans: Channels of the images.
        outputs: Binary outputs.
        width: Channels of the first stage, doubled at each further one.
        mixers: Mixer of each stage, names in `patnet.nn.MIXERS`.
        patch: Kernel and stride of the stem.
        depth: Blocks of each stage.
        pool: `avg` or `max` over the positions of the last map.
        **options: Options of the mixers.
    """

    def __init__(
        self,
        in_chans: int,
        outputs: int,
        width: int,
        mixers: Sequence[str],
        patch: int = 1,
        depth: int = 1,
        pool: str = "avg",
        **options: Any,
    ) -> None:
        layers: list[nn.Module] = []
        before, stride = in_chans, patch
        for i, name in enumerate(mixers):
            dim = width * 2**i
            mixer = MIXERS[name]
            layers += [nn.Conv2d(before, dim, stride, stride, bias=False), BatchNorm2d(dim)]
            for _ in range(depth):
                layers.append(mixer.block(mixer.build(dim, **SELF_ATTENTION, **options), MLP(dim, act_layer=nn.GELU)))
            before, stride = dim, 2
        layers += [SelectAdaptivePool2d(1, pool), nn.Conv2d(before, 64, 1, bias=False), nn.GELU(), nn.Flatten()]
        super().__init__(*layers, nn.Linear(64, outputs))


class Probe(nn.Module):
    """One PAT_ch, the means of its maps, and a linear layer: of the untouched channels, the gate alone tells the class.

    Apart from its gate, PAT_ch is linear in its input, and so are the mean and the last layer. The mean of a map times
    its gate is the gate, because the maps of the task `textures` have a mean of 1 whatever their class (except where
    the class is the mean). The convolved channels are of no class.
    """

    def __init__(self, in_chans: int, outputs: int, channel_attn: str) -> None:
        super().__init__()
        self.block = PAT_ch(in_chans, channel_attn=channel_attn)
        self.readout = nn.Linear(in_chans, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_chans, H, W)` to `(N, outputs)`."""
        return self.readout(self.block(x).mean((2, 3)))
