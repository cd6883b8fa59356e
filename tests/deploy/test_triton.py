"""The Triton kernels compute what the fused network computes; without a GPU, in Triton's interpreter."""

import importlib

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.fasternet import MLPBlock
from torch import nn

from patnet import InputError, fuse
from patnet.bench import fold_norms
from patnet.deploy import prepare
from patnet.models.network import PATNet
from patnet.nn import MLP

pytest.importorskip("triton")
GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def kernels():
    return importlib.import_module("patnet.deploy.triton")


def randomized(network: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and weights with which every part changes the output."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5)
        elif isinstance(getattr(module, "table", None), nn.Parameter):
            nn.init.normal_(module.table)
    return network.eval()


def assert_equal(kernels, network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network with kernels gives the same, in float32 on a CPU and to the precision of bfloat16 on a GPU."""
    device, dtype, rtol = ("cuda", torch.bfloat16, 3e-2) if GPU else ("cpu", torch.float32, 1e-5)
    network, images = network.to(device), images.to(device)
    with_kernels = kernels.with_kernels(network.to(dtype))
    with torch.inference_mode():
        expected = network.float()(images)
        given = with_kernels(images.to(dtype)).float()
    assert (given - expected).abs().max() <= rtol * expected.abs().max()
    return with_kernels


@settings(max_examples=8)
@given(st.data())
def test_network_with_kernels_equals_the_fused_network(kernels, data):
    options = {
        "embed_dim": data.draw(st.sampled_from([8, 12, 16, 24, 40])),
        "num_heads": data.draw(st.sampled_from([1, 2])),
        "act_layer": data.draw(st.sampled_from(["relu", "gelu", "silu"])),
        "mlp_ratio": data.draw(st.sampled_from([1.5, 2.0, 3.0])),
        "spatial_attn": data.draw(st.sampled_from(["pat_sp", "full_sp", "cbam", "none"])),
        "channel_attn": data.draw(st.sampled_from(["gaussian", "gaussian", "se", "none"])),
        "position_mode": data.draw(st.sampled_from(["bias", "bias", "contextual"])),
        "position_method": data.draw(st.sampled_from(["euclidean", "none"])),
        "sf_norm_position": data.draw(st.sampled_from(["before", "before", "after"])),
        "mixers": data.draw(
            st.sampled_from([("pat_ch", "pat_ch", "pat_ch", "pat_sf"), ("pconv", "full_ch", "pat_sf", "full_sf")])
        ),
    }
    network = fuse(randomized(PATNet(num_classes=5, feature_dim=16, depths=(1, 1, 1, 1), **options)))
    size = [data.draw(st.integers(33, 90)) for _ in range(2)]
    assert_equal(kernels, network, torch.randn(data.draw(st.integers(1, 3)), 3, *size))


@pytest.mark.parametrize("tiles", [{}, {512: (64, 32, 8, 2), 256: (64, 64, 8, 2), 128: (64, 64, 8, 2)}])
@pytest.mark.parametrize("name", ["patnet_t0", "fasternet_t0"])
def test_blocks_of_both_networks_have_kernels_in_both_forms(kernels, monkeypatch, name, tiles):
    monkeypatch.setattr(kernels, "TILES", tiles)
    network = fold_norms(fuse(randomized(timm.create_model(name))))
    with_kernels = assert_equal(kernels, network, torch.randn(2, 3, 64, 96))
    kinds = [type(module) for module in with_kernels.modules()]
    assert kinds.count(kernels.Block) == (14 if name == "patnet_t0" else 13)
    assert kinds.count(kernels.SelfAttention) == (4 if name == "patnet_t0" else 0)
    assert not {MLP, MLPBlock} & set(kinds)


def test_maps_of_more_positions_than_a_kernel_holds(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 16)
    monkeypatch.setattr(kernels, "MAX_TOKENS", 4)
    network = fuse(randomized(PATNet(num_classes=5, embed_dim=16, depths=(1, 1, 1, 1), num_heads=2)))
    assert_equal(kernels, network, torch.randn(2, 3, 96, 160) + 50)  # a mean far from 0


def test_features_of_each_stage(kernels):
    network = fuse(randomized(timm.create_model("patnet_t0", features_only=True))).to("cuda" if GPU else "cpu")
    images = torch.randn(1, 3, 64, 64).to("cuda" if GPU else "cpu")
    half = torch.bfloat16 if GPU else torch.float32
    with torch.inference_mode():
        given = kernels.with_kernels(network.to(half))(images.to(half))
        expected = network.float()(images)
    assert len(given) == 4
    for one, other in zip(given, expected, strict=True):
        assert (one - other).abs().max() <= (3e-2 if GPU else 1e-5) * other.abs().max()


@pytest.mark.skipif(GPU, reason="a GPU is there")
def test_without_a_gpu_the_backend_says_where_it_runs():
    with pytest.raises(InputError, match="backend triton runs on cuda, not on cpu"):
        prepare(nn.Identity(), torch.zeros(1, 3, 32, 32), backend="triton", precision="bf16")


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_backend_on_a_gpu():
    network = fuse(randomized(timm.create_model("patnet_t0"))).cuda()
    images = torch.randn(2, 3, 64, 64, device="cuda")
    for precision in ("fp16", "bf16"):
        run = prepare(network, images, backend="triton", precision=precision)
        with torch.inference_mode():
            for batch in (images, images.flip(3)):
                expected = network(batch)
                assert (run(batch).float() - expected).abs().max() <= 3e-2 * expected.abs().max()
