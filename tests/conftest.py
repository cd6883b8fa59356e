"""What all tests share: hypothesis without deadlines or randomness, a fixed seed, small networks and images."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from images import write_images
from torch import nn

settings.register_profile(
    "patnet",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patnet")

if not torch.cuda.is_available():  # Triton reads it when it is imported, which torch puts off until it compiles
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that starts the tests in the background has the signal ignored, also by the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two threads wait for each other longer than these small tensors take, more so while another job runs.
torch.set_num_threads(1)

TINY = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 2, "feature_dim": 16}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def settled() -> Callable[[nn.Module], nn.Module]:
    """Gives every weight, table and norm statistic of a module a random value, and sets evaluation mode."""

    @torch.no_grad()
    def settle(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator)
                value.copy_(0.5 + drawn.abs() if name.endswith(("var", "norm.weight")) else 0.3 * drawn)
        return module.eval()

    return settle


@pytest.fixture(scope="session")
def authors_file() -> Path:
    """Random weights and what the authors' network computes with them, see the reference tensors' description."""
    return Path(__file__).parent / "data" / "authors_small.safetensors"


@pytest.fixture
def images_dir(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of images for each class: `images_dir(a=3, b=5)`. Classes can be learned by their brightness."""
    return lambda **counts: write_images(tmp_path / "images", **counts)


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory, settled: Any) -> Path:
    """A checkpoint directory of a tiny PATNet with classes a, b and c, for images of 64 px, with random weights."""
    import timm

    from patnet import save_checkpoint

    torch.manual_seed(0)
    model = settled(timm.create_model("patnet_t0", num_classes=3, **TINY))
    data_config = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    directory = tmp_path_factory.mktemp("checkpoint")
    return save_checkpoint(model, directory, model_args=TINY, data_config=data_config, label_names=["a", "b", "c"])


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a tiny PATNet, trained for two epochs on `train` and `validation` of `images` next to it.

    Classes a and b, 8 and 4 images each; do not change it: copy it first.
    """
    from patnet.train import TrainConfig, train

    root = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 8), ("validation", 4)):
        write_images(root / "images" / split, a=count, b=count)
    config = TrainConfig(
        data=str(root / "images"),
        out=str(root / "run"),
        model="patnet_t0",
        model_kwargs=dict(TINY),
        img_size=64,
        epochs=2,
        warmup_epochs=0,
        batch_size=4,
        workers=0,
        accelerator="cpu",
    )
    train(config)
    return root / "run"
