import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from patnet import InputError, PATNet, fuse
from patnet.inspection import grad_cam

IMAGE = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model(settled):
    pytest.importorskip("captum")
    return settled(PATNet(num_classes=3, embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, feature_dim=8))


def test_it_is_the_map_weighted_by_its_mean_gradients(model):
    maps = model.forward_features(IMAGE).detach().requires_grad_()
    for target in range(3):
        (gradient,) = torch.autograd.grad(model.forward_head(maps)[0, target], maps)
        cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
        cam = F.interpolate(cam, size=(96, 128), mode="bilinear")[0, 0].detach()
        found = grad_cam(model, IMAGE, target)
        assert found.shape == (96, 128)
        np.testing.assert_allclose(found, cam / cam.max().clamp_min(1e-30), atol=1e-5)  # 0 without evidence


def test_maps_with_channels_last():
    torch.manual_seed(0)
    options = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "img_size": (96, 128)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, window_size=4, **options).eval()
    for value in swin.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.2)
    kept = []
    hook = swin.layers[-1].register_forward_hook(lambda module, args, output: kept.append(output))
    logits = swin(IMAGE)
    hook.remove()
    for target in range(3):
        (gradient,) = torch.autograd.grad(logits[0, target], kept[0], retain_graph=True)
        cam = (gradient.mean((1, 2), keepdim=True) * kept[0]).sum(3)[None].relu()
        cam = F.interpolate(cam, size=(96, 128), mode="bilinear")[0, 0].detach()
        np.testing.assert_allclose(grad_cam(swin, IMAGE, target), cam / cam.max().clamp_min(1e-30), atol=1e-5)
    assert not any(m._forward_hooks for m in swin.modules())


def test_it_leaves_the_network_as_it_was_and_takes_the_predicted_class(model):
    best = int(model(IMAGE).argmax())
    model.train()
    frozen, trainable = list(model.parameters())[:2]
    frozen.requires_grad_(False)
    trainable.grad = torch.ones_like(trainable)
    with torch.inference_mode():
        found = grad_cam(model, IMAGE)
    assert (model.training, frozen.requires_grad, trainable.requires_grad) == (True, False, True)
    assert torch.equal(trainable.grad, torch.ones_like(trainable))
    assert sum(p.grad is not None for p in model.parameters()) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert np.array_equal(found, grad_cam(model, IMAGE, best))
    np.testing.assert_allclose(grad_cam(fuse(model.eval()), IMAGE, best), found, atol=1e-3)


def test_other_networks_and_a_missing_package(model, monkeypatch):
    assert grad_cam(timm.create_model("resnet10t", num_classes=2), IMAGE, 1).shape == (96, 128)
    vit = timm.create_model("test_vit", num_classes=2, img_size=(96, 128))
    for network, target, message in (
        (model, 3, "classes 0 to 2"),
        (vit, None, "feature map"),
        (timm.create_model("twins_svt_small", num_classes=2), None, "has no module 'block.3'"),
        (torch.nn.Conv2d(3, 2, 1), None, "Conv2d has no feature_info"),
    ):
        with pytest.raises(InputError, match=message):
            grad_cam(network, IMAGE, target)
    for wrong in (IMAGE[0], IMAGE.expand(2, -1, -1, -1)):
        with pytest.raises(InputError, match=r"takes one image \(1, in_chans, H, W\), not \("):
            grad_cam(model, wrong)
    monkeypatch.setattr("patnet.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'patnet\[inspect\]'"):
        grad_cam(model, IMAGE)
