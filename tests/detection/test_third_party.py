import pytest
import torch

import patnet  # noqa: F401  (registers the models)

smp = pytest.importorskip("segmentation_models_pytorch")


def test_encoder_of_a_segmentation_network():
    model = smp.Unet("tu-patnet_t0", encoder_weights=None, classes=2)
    images = torch.rand(2, 3, 64, 96)
    labels = torch.randint(0, 2, (2, 64, 96))
    logits = model(images)
    assert logits.shape == (2, 2, 64, 96)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    stem = model.encoder.model.model.stem.conv
    assert stem.weight.grad.abs().max() > 0
    assert model.encoder.out_channels == [3, 0, 32, 64, 128, 256]
