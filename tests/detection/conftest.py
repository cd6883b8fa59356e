"""Small detectors for the tests, annotated images for them, and a run that was trained on such images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from rich.console import Console
from torch import nn

from patnet.detection import build
from patnet.detection.config import DetectConfig
from patnet.detection.training import train

NAMES, IDS = ["cat", "dog", "a [bracketed] name"], [10, 20, 30]
FEW = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}
FEW |= {"rpn_post_nms_top_n_train": 50, "box_detections_per_img": 10}


@pytest.fixture(scope="session")
def small() -> Callable[..., nn.Module]:
    """Builds a detector of three classes with a tiny backbone that finds something with random weights."""

    def make(detector: str, **kwargs: Any) -> nn.Module:
        dense, rcnn = {"score_thresh": 0.01, "detections_per_img": 10}, {"box_score_thresh": 0.01, **FEW}
        options: dict[str, Any] = {"backbone": "patnet_t0", "num_classes": 3, "min_size": 64, "max_size": 128}
        options |= {"backbone_kwargs": TINY, **(dense if detector == "retinanet" else rcnn), **kwargs}
        torch.manual_seed(0)
        model = build(detector, **options)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.dim() > 1 and name.startswith(("head.", "rpn.head", "roi_heads.box_predictor")):
                    value.normal_(0, (2 / value[0].numel()) ** 0.5)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder in COCO's layout: images of several sizes, each third one empty, with bright rectangles."""

    def make(names: list[str] = NAMES, polygons: bool = True, mode: str = "RGB", **counts: int) -> Path:
        root = tmp_path_factory.mktemp("coco")
        (root / "annotations").mkdir()
        rng = np.random.default_rng(0)
        for split, count in counts.items():
            (root / split).mkdir()
            images, objects = [], []
            for i in range(1, count + 1):
                width, height = int(rng.integers(60, 100)), int(rng.integers(50, 80))
                pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
                images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
                for _ in range(i % 3):
                    x, y = (int(v) for v in rng.integers(0, 30, 2))
                    pixels[y : y + 20, x : x + 25] += 150
                    category = 10 * int(rng.integers(1, len(names) + 1))
                    one = {"id": len(objects) + 1, "image_id": i, "category_id": category, "bbox": [x, y, 25, 20]}
                    outline = [[x, y, x + 25, y, x + 25, y + 20, x, y + 20]]
                    objects.append({**one, **({"segmentation": outline} if polygons else {})})
                Image.fromarray(pixels).convert(mode).save(root / split / f"{i}.png")
            categories = [{"id": 10 * k, "name": name} for k, name in enumerate(names, start=1)]
            content = {"images": images, "annotations": objects, "categories": categories}
            (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture(scope="session")
def data(coco: Callable[..., Path]) -> Path:
    """Grey images in COCO's layout, 8 for training and 3 for testing."""
    return coco(mode="L", train=8, test=3)


@pytest.fixture(scope="session")
def config() -> Callable[..., DetectConfig]:
    """Options of a run of two epochs of three steps."""

    def make(data: Path, out: Path, **options: Any) -> DetectConfig:
        defaults = {"epochs": 2, "warmup_steps": 2, "lr_steps": [1], "val_fraction": 0.25, "model_ema_decay": 0.9}
        defaults |= {"in_chans": 1, "width": 16, "min_size": 64, "max_size": 96, "workers": 0, "accelerator": "cpu"}
        defaults["backbone_kwargs"] = {**TINY, "depths": [1, 1, 1, 1], "drop_path_rate": 0.1}
        defaults["detector_kwargs"] = {} if options.get("detector") == "retinanet" else FEW
        return DetectConfig(data=str(data), out=str(out), **{**defaults, **options})

    return make


@pytest.fixture(scope="session")
def trained(data: Path, config: Callable[..., DetectConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a Mask R-CNN."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(config(data, out), console=Console(quiet=True))
    return out
