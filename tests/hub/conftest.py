import shutil

import numpy as np
import pytest
from PIL import Image

from patnet import load
from patnet.hub import write_hub_directory
from patnet.train import TrainConfig, train
from patnet.train.evaluate import evaluate

TINY = {"embed_dim": 8, "depths": [1, 1], "mixers": ["pat_ch", "pat_sf"], "num_heads": 2, "feature_dim": 16}
CPU = {"workers": 0, "accelerator": "cpu"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with colour images, `photos`, and the run `run` on them as grey images, evaluated."""
    root = tmp_path_factory.mktemp("secret_place")
    for split in ("train", "val", "test"):
        for shift, name in ((0, "dark"), (120, "light|er")):
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng([i, shift]).integers(0, 130, (72, 80, 3), dtype=np.uint8) + shift
                Image.fromarray(pixels.astype(np.uint8)).save(root / "photos" / split / name / f"{i}.png")
    options = {"img_size": 64, "in_chans": 1, "epochs": 2, "warmup_epochs": 0, "batch_size": 6, "model_kwargs": TINY}
    train(TrainConfig(data=str(root / "photos"), out=str(root / "run"), **options, **CPU))
    evaluate(load(root / "run"), **CPU)
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, to change."""
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.fixture
def image(trained):
    """A colour image."""
    return trained / "photos" / "test" / "light|er" / "0.png"


@pytest.fixture(scope="session")
def written(trained):
    """The directory for the Hub of that run."""
    assert write_hub_directory(load(trained / "run"), trained / "first") == []
    return trained / "first"
