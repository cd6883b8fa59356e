import pytest
import torch
from torch import nn

from patnet import PATNet
from patnet.deploy import BACKENDS


def make_tiny(seed: int = 0) -> nn.Module:
    """A network of two blocks whose norms have statistics other than 0 and 1, and whose logits differ."""
    torch.manual_seed(seed)
    args = {"embed_dim": 8, "depths": (1, 1), "mixers": ("pat_ch", "pat_sf"), "num_heads": 2, "feature_dim": 16}
    model = PATNet(**args, num_classes=3)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    nn.init.normal_(model.get_classifier().weight)
    return model.eval()


@pytest.fixture(scope="session")
def tiny():
    """Makes a tiny network from a seed."""
    return make_tiny


@pytest.fixture(scope="session")
def model():
    return make_tiny()


@pytest.fixture(scope="session")
def images():
    """Makes images of a count, a size and a seed."""

    def make(count, height=64, width=64, seed=1):
        return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def need():
    """Skips a test whose backend is not installed."""

    def check(backend, precision="fp32"):
        for package in BACKENDS[backend].needs(precision):
            pytest.importorskip(package)

    return check


@pytest.fixture(scope="session")
def assert_same():
    """Checks logits against those of a network, relative to the largest."""

    def check(found, model, x, tolerance=1e-4):
        with torch.inference_mode():
            expected = model(x)
        assert found.shape == expected.shape
        assert (found.float() - expected).abs().max() <= tolerance * expected.abs().max()

    return check
