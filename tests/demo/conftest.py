"""A small network, a run with held-out images, and a small detector, for the page."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, write_images

NAMES = ["cat", "dog", "a [bracketed] <b>name</b>"]


@pytest.fixture(scope="session")
def run(checkpoint_dir, tmp_path_factory) -> Path:
    """A run directory with a checkpoint of random weights for 64 px, and its data set, so that there are examples."""
    from patnet.train.config import TrainConfig

    root = tmp_path_factory.mktemp("demo")
    shutil.copytree(checkpoint_dir, root / "run" / "best")
    file = root / "run" / "best" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "label_names": NAMES}))
    data = write_images(root / "images", cat=4, dog=4)
    config = TrainConfig(data=str(data), out=str(root / "run"), val_fraction=0.5)
    (root / "run" / "config.yaml").write_text(config.to_yaml())
    return root / "run"


@pytest.fixture(scope="session")
def detector(tmp_path_factory) -> Path:
    """A detector that finds something in noise."""
    from patnet.detection import build, save_detector

    options = {"num_classes": 2, "min_size": 64, "max_size": 128, "detections_per_img": 5, "backbone_kwargs": TINY}
    model = build("retinanet", backbone="patnet_t0", **options).eval()
    model.head.classification_head.cls_logits.bias.data.fill_(-1)  # scores of 0.27
    directory = tmp_path_factory.mktemp("detector")
    return save_detector(model, directory, class_names=["ant", "bee"], category_ids=[1, 2])
