"""Small detectors for the tests, and pictures with objects for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patnet.detection import build

TINY = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2}
FEW = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}


@pytest.fixture
def small() -> Callable[..., nn.Module]:
    """Builds a detector with a tiny backbone that finds something with random weights, its scores well apart."""

    def make(detector: str, **kwargs: Any) -> nn.Module:
        rcnn = {"box_score_thresh": 0.01, "box_detections_per_img": 10, "rpn_post_nms_top_n_train": 50, **FEW}
        dense = {"score_thresh": 0.01, "detections_per_img": 10}
        mine = {"backbone": "patnet_t0", "num_classes": 3, "min_size": 64, "max_size": 128}
        if "backbone" not in kwargs:
            mine["backbone_args"] = TINY
        model = build(detector, **{**mine, **(dense if detector == "retinanet" else rcnn), **kwargs})
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.dim() > 1 and name.startswith(("head.", "rpn.head", "roi_heads.box_predictor")):
                    value.normal_(0, (2 / value[0].numel()) ** 0.5)
        return model.eval()

    return make


@pytest.fixture
def target() -> Callable[..., dict[str, Tensor]]:
    """Makes random objects in a picture of a size."""

    def make(height: int, width: int, count: int, classes: int = 3) -> dict[str, Tensor]:
        corner = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
        side = (0.2 + 0.3 * torch.rand(count, 2)) * torch.tensor([width, height])
        boxes = torch.cat((corner, corner + side), 1)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        masks = [(columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2) for x1, y1, x2, y2 in boxes]
        return {
            "boxes": boxes,
            "labels": torch.randint(1, classes + 1, (count,)),
            "masks": torch.stack(masks).byte() if masks else torch.zeros(0, height, width, dtype=torch.uint8),
        }

    return make
