"""The networks to measure: built with random weights or loaded, fused, and counted."""

import copy
import operator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.fasternet import MLPBlock, PatchEmbed, PatchMerging
from torch import Tensor, nn
from torch.fx.experimental import optimization
from torch.utils.flop_counter import FlopCounterMode

from ..deploy import Exported
from ..errors import InputError
from ..loading import load
from ..models import fuse, input_channels
from ..nn.folding import affine_of, fold


def build(name: str, *, unfused: bool = False) -> nn.Module:
    """A network in evaluation mode on the CPU; a model of timm has seeded random weights.

    Fused networks come from `patnet.fuse`, with the batch norms folded that this leaves after a convolution, so that no
    family is slower than it has to be.
    """
    torch.manual_seed(0)
    network = load(name).model
    return network if unfused else fold_norms(fuse(network))


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy of the network with its batch norms folded into the convolutions before them, if torch.fx can trace it.

    `patnet.fuse` does this for PATNet; for other networks it does what timm provides, which for many is nothing.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    folded = copy.deepcopy(network)
    if any(isinstance(module, MLPBlock) for module in folded.modules()):
        return _fold_fasternet(folded)
    for name, module in list(folded.named_modules()):
        if type(module) is BatchNormAct2d:  # timm's norm with activation, as two modules of torch
            norm = nn.BatchNorm2d(module.num_features, module.eps)
            norm.load_state_dict(module.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(operator.attrgetter(parent)(folded) if parent else folded, child, nn.Sequential(norm, module.act))
    try:
        return optimization.fuse(folded.eval())
    except Exception:  # tracing fails with as many types as there are networks
        return network


def _fold_fasternet(network: nn.Module) -> nn.Module:
    """The same without tracing, which leaves the blocks whole, for kernels that take a whole block."""
    pairs: dict[type, tuple[str, str]] = {
        MLPBlock: ("mlp.0", "mlp.1"),
        PatchEmbed: ("proj", "norm"),
        PatchMerging: ("reduction", "norm"),
    }
    for module in network.modules():
        if type(module) in pairs:
            first, second = pairs[type(module)]
            conv: Any = module.get_submodule(first)
            module.set_submodule(first, fold(conv, after=affine_of(module.get_submodule(second))))
            module.set_submodule(second, nn.Identity())
    return network.eval()


def _in_chans(network: nn.Module) -> int:
    if hasattr(network, "pretrained_cfg"):
        return input_channels(network)
    return next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))


def random_images(network: nn.Module, count: int, size: int) -> Tensor:
    """Seeded noise `(N, C, H, W)` as input of a network, since speed does not depend on what the images show."""
    return torch.randn(count, _in_chans(network), size, size, generator=torch.Generator().manual_seed(0))


def count(network: nn.Module, size: int) -> tuple[int, float]:
    """Parameters, and GMACs (convolutions, linear layers, attention) for one image of `size` px.

    Raises:
        InputError: If the network does not take images of this size.
    """
    device = next(network.parameters()).device
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, _in_chans(network), size, size, device=device))
    except Exception as error:  # each network raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"--img-size {size}: the network does not take images of {size}x{size} px ({reason})"
        ) from error
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 2e9


@lru_cache
def usual_size(name: str) -> int:
    """Side in px of a model's images by timm's configuration, or of a run's images.

    Raises:
        InputError: If there is no network of this name, or it is an exported file.
    """
    if not Path(name).exists() and timm.is_model(name):
        with suppress(RuntimeError):  # a wrong tag, which `load` names
            if config := timm.get_pretrained_cfg(name):
                return int(config.input_size[-1])
    loaded = load(name)
    if isinstance(loaded.model, Exported):
        raise InputError(f"{name}: is an exported file; give the run that it was made from, and --backends")
    return int(loaded.data_config["input_size"][-1])
