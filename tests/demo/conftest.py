"""A small network and a small detector in directories, for the page."""

from pathlib import Path

import pytest
import timm
import torch

import patnet  # noqa: F401  # makes the networks known to timm
from patnet.models import save_checkpoint

NAMES = ["cat", "dog", "a [bracketed] <b>name</b>"]
TINY = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2}


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A checkpoint of a PATNet for pictures of 64 px, with random weights."""
    torch.manual_seed(0)
    model = timm.create_model("patnet_t0", num_classes=3, **TINY)
    data_config = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    directory = tmp_path_factory.mktemp("network")
    return save_checkpoint(model, directory, model_args=TINY, data_config=data_config, label_names=NAMES)


@pytest.fixture(scope="session")
def detector(tmp_path_factory) -> Path:
    """A detector that finds something in noise."""
    from patnet.detection import build, save_detector

    torch.manual_seed(0)
    model = build(
        "retinanet",
        backbone="patnet_t0",
        backbone_args=TINY,
        num_classes=2,
        min_size=64,
        max_size=128,
        score_thresh=0.01,
        detections_per_img=5,
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and name.startswith("head."):
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return save_detector(
        model.eval(), tmp_path_factory.mktemp("detector"), class_names=["ant", "bee"], category_ids=[1, 2]
    )
