"""What every entry of every table of blocks holds to."""

import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import create_feature_extractor
from torch import nn

from patnet import fuse
from patnet.nn import (
    CHANNEL_ATTENTIONS,
    MIXERS,
    MLP,
    SPATIAL_ATTENTIONS,
    FullAttention,
    LargeKernelAttention,
    LinearAttention,
    PAT_ch,
    PAT_sf,
    PAT_sp,
    PConv,
    QuantileChannelAttention,
    RelativePosition,
    WindowAttention,
    look_up,
)

MIXER_OPTIONS = {"num_heads": 2, "window_size": 3}
BUILDERS = {
    **{name: partial(mixer.build, **MIXER_OPTIONS) for name, mixer in MIXERS.items()},
    "pat_ch all": partial(PAT_ch, ch_norm_position="all"),
    "pat_sf after": partial(PAT_sf, num_heads=2, sf_norm_position="after"),
    "pat_sf contextual": partial(PAT_sf, num_heads=2, position_mode="contextual"),
    "pat_sf product": partial(PAT_sf, num_heads=2, position_method="product", position_mode="contextual"),
    **{f"channel {name}": entry for name, entry in CHANNEL_ATTENTIONS.items()},
    **{f"MLP {name}": partial(MLP, spatial_attn=name) for name in SPATIAL_ATTENTIONS},
}
each_entry = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


class OwnNorm(nn.BatchNorm2d):
    pass


@each_entry
@settings(max_examples=10)
@given(
    quarters=st.integers(2, 6),
    batch=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    training=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    level=st.sampled_from([0.0, 5.0]),
    varied=st.booleans(),
)
def test_maps_of_any_size_constant_or_not_keep_their_shape_and_have_gradients(
    build, quarters, batch, height, width, training, layout, level, varied
):
    module = build(8 * quarters).train(training)
    x = level + varied * torch.randn(batch, 8 * quarters, height, width)
    x = x.contiguous(memory_format=layout).requires_grad_()
    y = module(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


@each_entry
def test_gradcheck(settled, build):
    module = settled(build(8, dtype=torch.float64))
    names = [key for key, _ in module.named_parameters()]
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64, requires_grad=True)

    def call(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()), fast_mode=True)


@each_entry
def test_half_precision_is_near_single(settled, build):
    module = settled(build(8))
    for size in [(5, 4), (1, 1)]:
        x = 30 * torch.randn(2, 8, *size)
        expected = module.float()(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = [module(x)]
        for dtype in (torch.bfloat16, torch.half):
            found.append(module.to(dtype)(x.to(dtype)))
            assert found[-1].dtype == dtype
        for y in found:
            assert (y.float() - expected).norm() <= 0.05 * expected.norm()


@each_entry
def test_scripted_exported_traced_by_fx_pickled_and_fused_compute_the_same(settled, build):
    module = settled(nn.Sequential(build(8)))
    x = torch.randn(2, 8, 5, 4)
    module(x)  # indices that an earlier call cached must not be written into a program
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    extractor = create_feature_extractor(module, {"0": "y"})
    fused = fuse(module)
    forms = {
        "scripted": torch.jit.script(module),
        "exported": torch.export.export(module, (x,), dynamic_shapes=(dynamic,), strict=False).module(),
        "fx": lambda x: extractor(x)["y"],
        "pickled": pickle.loads(pickle.dumps(module)),
        "fused": fused,
    }
    for size in [(5, 4), (4, 7)]:  # more than one window of 3 each way, as in the example
        x = torch.randn(3, 8, *size)
        for form in forms.values():
            torch.testing.assert_close(form(x), module(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())


@each_entry
def test_built_on_a_device_and_in_a_dtype(build):
    for device, dtype in [("meta", torch.float32), ("cpu", torch.bfloat16)]:
        module = build(8, device=device, dtype=dtype).eval()
        values = [value for value in module.state_dict().values() if value.is_floating_point()]
        assert all((value.device.type, value.dtype) == (device, dtype) for value in values)
        y = module(torch.randn(2, 8, 3, 4, device=device, dtype=dtype))
        assert (y.shape, y.device.type, y.dtype) == ((2, 8, 3, 4), device, dtype)


@pytest.mark.parametrize("name", [name for name in BUILDERS if not name.startswith("pat_sf ")])
def test_another_norm_reaches_every_norm(name):
    module = BUILDERS[name](8, norm_layer=OwnNorm)
    assert all(isinstance(part, OwnNorm) for part in module.modules() if isinstance(part, nn.BatchNorm2d))


def test_names_are_looked_up_or_refused_with_the_nearest_and_the_choices():
    table = {"gaussian": 1, "none": 2}
    assert look_up(table, "none", "channel_attn") == 2
    for name, hint in (("gausian", r" \(did you mean 'gaussian'\?\)"), ("xyz", "")):
        with pytest.raises(ValueError, match=f"^unknown channel_attn '{name}'{hint}: choose from gaussian, none$"):
            look_up(table, name, "channel_attn")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PConv(8, 0), r"partial_ratio must lie in \(0, 1\], got 0"),
        (lambda: PConv(8, float("nan")), r"partial_ratio must lie in \(0, 1\], got nan"),
        (lambda: PConv(8, 0.1), r"leaves none of 8 channels to convolve: at least 0\.125 is needed"),
        (lambda: PAT_ch(8, 1.0), r"leaves none of 8 channels to attend to: at most 0\.875 is possible"),
        (lambda: PAT_sp(1), "leaves none of 1 channels"),
        (lambda: PAT_ch(8, ch_norm_position="al"), r"unknown ch_norm_position 'al' \(did you mean 'all'\?\)"),
        (lambda: PAT_ch(8, channel_attn="see"), r"unknown channel_attn 'see' \(did you mean 'se'\?\)"),
        (lambda: QuantileChannelAttention(8, 1), "parts=1 has no quantile between its parts: at least 2 are needed"),
        (lambda: PAT_sf(16, num_heads=5), "num_heads=5 does not divide the 12 attended channels: .*1, 2, 3, 4, 6, 12"),
        (lambda: PAT_sf(16, num_heads=0), "num_heads=0"),
        (lambda: PAT_sf(16, sf_norm_position="befor"), r"sf_norm_position 'befor' \(did you mean 'before'\?\)"),
        (lambda: LinearAttention(12, num_heads=5), "num_heads=5 does not divide the 12 .* are 1, 2, 3, 4, 6, 12"),
        (lambda: FullAttention(8, LargeKernelAttention, sf_norm_position="afte"), "unknown sf_norm_position 'afte'"),
        (lambda: WindowAttention(12, 0), "window_size=0 has no position: at least 1 is needed"),
        (lambda: WindowAttention(12, position_method="prodct"), "unknown position method 'prodct'"),
        (lambda: RelativePosition(2, 3, method="euclid"), "'euclid'.*choose from euclidean, product"),
        (lambda: RelativePosition(2, 3, mode="biased"), "unknown position mode 'biased'.*choose from bias, contextual"),
        (lambda: RelativePosition(2, 3, alpha=0), "must hold"),
        (lambda: RelativePosition(2, 3, gamma=20), "must hold"),
        (lambda: RelativePosition(2, 3, beta=10), "must hold"),
        (lambda: MLP(8, 0.01), r"mlp_ratio=0\.01 leaves no hidden channel for dim=8"),
        (lambda: MLP(8, spatial_attn="pat_spp"), r"unknown spatial_attn 'pat_spp' \(did you mean 'pat_sp'\?\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
