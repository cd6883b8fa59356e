"""A tiny PATNet, and files of its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import patnet  # registers the models

TINY = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 2, "feature_dim": 16, "num_classes": 5}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Makes a tiny PATNet with five classes; arguments differ from `tiny.args`."""

    def make(**kwargs: Any) -> nn.Module:
        return timm.create_model("patnet_t0", **TINY | kwargs)

    make.args = TINY
    return make


@pytest.fixture(scope="session")
def write() -> Callable[[Any, Path], Path]:
    """Writes weights to a file in the format of its suffix."""

    def save(weights: Any, file: Path) -> Path:
        if file.suffix == ".safetensors":
            safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()}, file)
        else:
            torch.save(weights, file)
        return file

    return save


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, settled: Any, tiny: Any) -> tuple[Any, Path]:
    """A tiny PATNet with random weights, and the checkpoint directory that it was saved to."""
    model = settled(tiny())
    directory = tmp_path_factory.mktemp("saved")
    return model, patnet.save_checkpoint(model, directory, model_args=TINY, label_names=list("abcde"))
