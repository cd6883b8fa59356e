import copy
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import GELU
from torch import nn

from patnet import InputError, fuse
from patnet.nn import MLP, BatchNorm2d, PAT_ch, PAT_sp, PATBlock, native, use_native

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

BUILDERS = {
    "norm": BatchNorm2d,
    "mlp relu": lambda dim: MLP(dim, spatial_attn="none"),
    "mlp gelu": lambda dim: MLP(dim, act_layer=GELU),
    "pat_ch": PAT_ch,
    "pat_sp": PAT_sp,
}
each_builder = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    use_native(False)
    torch.set_num_threads(before)


@pytest.fixture
def called(monkeypatch):
    """Names of the native functions that were called."""
    names, call = [], native._call
    monkeypatch.setattr(native, "_call", lambda name, *arguments: (names.append(name), call(name, *arguments)))
    return names


def results(module, x, gradient, enabled):
    """Outputs, gradients and statistics of a copy of a module."""
    use_native(enabled)
    module, x = copy.deepcopy(module), x.detach().requires_grad_()
    y = module(x)
    y.backward(gradient)
    return [y, x.grad, *(p.grad for p in module.parameters() if p.requires_grad), *module.buffers()]


@each_builder
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(4, 40), st.integers(1, 9), st.integers(1, 9)),
    training=st.booleans(),
    layouts=st.lists(st.sampled_from([torch.contiguous_format, torch.channels_last]), min_size=2, max_size=2),
    start=st.integers(0, 3),
    threads=st.integers(1, 3),
    frozen=st.sampled_from(["", "weight", "norm", "mix"]),
    seed=st.integers(0, 9),
)
def test_outputs_gradients_and_statistics_are_those_of_pytorch(
    settled, build, sizes, training, layouts, start, threads, frozen, seed
):
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    batch, dim, height, width = sizes
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-3)):
        module = settled(build(dim)).to(dtype).train(training)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not frozen or frozen not in name)
        wide = torch.randn(batch, dim + start, height, width, dtype=dtype).add(1).contiguous(memory_format=layouts[0])
        x, gradient = wide[:, start:], torch.randn(batch, dim, height, width, dtype=dtype)
        gradient = gradient.contiguous(memory_format=layouts[1])
        expected, found = (results(module, x, gradient, enabled) for enabled in (False, True))
        largest = max(value.abs().max() for value in expected[1:] if value.is_floating_point())
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * float(largest))


@each_builder
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences(settled, called, build, training):
    torch.manual_seed(0)
    use_native()
    module = settled(build(8)).double().train(training)
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert {"norm", "affine"} & set(called)


@pytest.mark.parametrize("act_layer", [nn.ReLU, GELU])
def test_a_fused_block_computes_the_same(settled, called, act_layer):
    for dim, size in ((8, (3, 7, 5)), (32, (1, 14, 14)), (12, (2, 1, 1))):
        block = fuse(settled(PATBlock(PAT_ch(dim), MLP(dim, act_layer=act_layer))))
        x = torch.randn(size[0], dim, *size[1:]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            use_native(False)
            expected = block(x)
            use_native()
            torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    assert {"channel_gate", "spatial"} <= set(called)


def test_the_activation_is_accurate_in_its_tails():
    norm = BatchNorm2d(1, eps=0.0).eval()
    z = torch.linspace(-12, 12, 100_001)[None, None, :, None]
    use_native()
    x = z.clone().requires_grad_()
    y = native.norm(x, norm, GELU())
    y.sum().backward()
    exact = z.double().requires_grad_()
    nn.functional.gelu(exact).sum().backward()
    assert (y - nn.functional.gelu(z.double())).abs().max() < 1e-6
    assert (x.grad - exact.grad).abs().max() < 1e-6


def test_hooks_autocast_other_layouts_and_compilation_get_pytorch(settled, called):
    use_native()
    module = settled(PATBlock(PAT_ch(8), MLP(8))).train()
    x = torch.randn(2, 8, 4, 4)
    module(x)  # not in channels-last, but for the gates, one value of each channel
    assert called == ["norm"]
    called.clear()
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
    assert not called
    torch.compile(module, backend="eager", fullgraph=True)(x)
    assert not called
    assert native.takes(x, module.mixer.norm)
    seen = []
    for part in module.modules():
        part.register_forward_hook(lambda part, inputs, output: seen.append(part))
    module(x)
    assert set(seen) == {part for part in module.modules() if part is not module.mixer.attn.mix}
    assert "sums" not in called
    assert "gate" not in called


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_functions", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"need a C\+\+ compiler: install g\+\+, or set CXX"):
        use_native()
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'error: no OpenMP' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(InputError, match=r"cannot compile native.cpp: error: no OpenMP"):
        use_native()
    assert not list(tmp_path.glob("patnet/*.so"))


@pytest.mark.parametrize("channels", [4, 12])
@pytest.mark.parametrize("module", [BatchNorm2d(8), PAT_sp(8), PAT_ch(8), fuse(PAT_ch(8).eval())])
def test_maps_of_other_channels_get_the_error_of_pytorch(module, channels):
    x = torch.randn(2, channels, 4, 4).to(memory_format=torch.channels_last)
    use_native()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError):
            module(x)
