"""What all tests share: hypothesis without deadlines or luck, a fixed seed, modules with random statistics."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import nn

settings.register_profile(
    "patnet",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patnet")

# Two threads wait for each other longer than these small tensors take, more so beside another job.
torch.set_num_threads(1)


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
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with so many pictures in each named subfolder; classes differ in brightness, so can be learnt."""

    def make(**counts: int) -> Path:
        root = tmp_path / "photos"
        root.mkdir()
        for name, count in counts.items():
            folder = root / name
            folder.mkdir(parents=True)
            level = 40 + 150 * (ord(name[-1]) % 2)
            for i in range(count):
                noise = np.random.default_rng(i).integers(0, 40, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(level + noise).save(folder / f"{i:02d}.png")
        return root

    return make
