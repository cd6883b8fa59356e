import shutil

import numpy as np
import pytest
from PIL import Image

from patnet.cli import main

TINY = (
    *("--size", "64", "--in_chans", "1", "--epochs", "2", "--warmup_epochs", "0", "--batch_size", "6"),
    *("--workers", "0", "--accelerator", "cpu"),
    *("--model_args.embed_dim", "8", "--model_args.depths", "[1,1]", "--model_args.num_heads", "2"),
    *("--model_args.mixers", "[pat_ch,pat_sf]", "--model_args.feature_dim", "16"),
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with coloured pictures, `photos`, and the run `run` on them turned grey, evaluated."""
    root = tmp_path_factory.mktemp("secret_place")
    for split in ("train", "val", "test"):
        for shift, name in ((0, "dark"), (120, "light|er")):
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng([i, shift]).integers(0, 130, (72, 80, 3), dtype=np.uint8) + shift
                Image.fromarray(pixels.astype(np.uint8)).save(root / "photos" / split / name / f"{i}.png")
    assert main(["train", "--data", str(root / "photos"), "--out", str(root / "run"), *TINY]) == 0
    assert main(["evaluate", str(root / "run"), "--workers", "0", "--accelerator", "cpu"]) == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, to change."""
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.fixture
def picture(trained):
    """A coloured picture."""
    return trained / "photos" / "test" / "light|er" / "0.png"


@pytest.fixture(scope="session")
def written(trained):
    """What `patnet hub` writes of that run."""
    assert main(["hub", str(trained / "run"), "--out", str(trained / "first")]) == 0
    return trained / "first"
