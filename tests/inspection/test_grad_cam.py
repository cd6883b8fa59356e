import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from patnet import InputError, PATNet, fuse
from patnet.inspection import grad_cam

SMALL = {"num_classes": 3, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2, "feature_dim": 8}


@pytest.fixture
def model(settled):
    return settled(PATNet(**SMALL))


PICTURE = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(2))


def test_it_is_the_map_weighted_by_its_mean_gradients(model):
    pytest.importorskip("captum")
    maps = model.forward_features(PICTURE).detach().requires_grad_()
    for target in range(3):
        (gradient,) = torch.autograd.grad(model.forward_head(maps)[0, target], maps)
        cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
        cam = F.interpolate(cam, size=(96, 128), mode="bilinear")[0, 0].detach()
        wanted = cam / cam.max().clamp_min(1e-30)  # of the class for which nothing speaks: 0
        found = grad_cam(model, PICTURE, target)
        assert found.shape == (96, 128)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_it_leaves_the_network_as_it_was_and_takes_the_likeliest_class(model):
    pytest.importorskip("captum")
    best = int(model(PICTURE).argmax())
    model.train()
    frozen, trained = list(model.parameters())[:2]
    frozen.requires_grad_(False)
    trained.grad = torch.ones_like(trained)
    with torch.inference_mode():
        found = grad_cam(model, PICTURE)
    assert model.training
    assert not frozen.requires_grad
    assert trained.requires_grad
    assert torch.equal(trained.grad, torch.ones_like(trained))
    assert sum(p.grad is not None for p in model.parameters()) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert np.array_equal(found, grad_cam(model, PICTURE, best))
    np.testing.assert_allclose(grad_cam(fuse(model.eval()), PICTURE, best), found, atol=1e-3)


def test_other_networks_and_what_cannot_be(model):
    pytest.importorskip("captum")
    resnet = timm.create_model("resnet10t", num_classes=2)
    assert grad_cam(resnet, PICTURE, 1).shape == (96, 128)
    with pytest.raises(InputError, match="classes 0 to 2"):
        grad_cam(model, PICTURE, 3)
    vit = timm.create_model("test_vit", num_classes=2, img_size=(96, 128))
    with pytest.raises(InputError, match="feature map"):
        grad_cam(vit, PICTURE)
    with pytest.raises(InputError, match="Conv2d takes no part"):
        grad_cam(resnet, PICTURE, layer=torch.nn.Conv2d(3, 2, 1))
    with pytest.raises(InputError, match="layer"):
        grad_cam(torch.nn.Conv2d(3, 2, 1), PICTURE)


def test_without_the_package_one_sentence_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'patnet\[inspect\]'"):
        grad_cam(model, PICTURE)
