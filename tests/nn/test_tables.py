"""What every entry of every table of blocks holds to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import create_feature_extractor
from torch import nn

from patnet.nn import CHANNEL_ATTENTIONS, MIXERS, SPATIAL_ATTENTIONS, look_up, one_of

ENTRIES = [
    (table, name)
    for table, names in (("channel", CHANNEL_ATTENTIONS), ("spatial", SPATIAL_ATTENTIONS), ("mixer", MIXERS))
    for name in names
]
each_entry = pytest.mark.parametrize(("table", "name"), ENTRIES)


def build(table, name, dim, *, dtype=torch.float32, **options):
    if table == "mixer":
        return MIXERS[name].build(dim, num_heads=2, window_size=3, dtype=dtype, **options)
    entries = CHANNEL_ATTENTIONS if table == "channel" else SPATIAL_ATTENTIONS
    return entries[name](dim, dtype=dtype)


def test_names_are_looked_up_or_refused_with_the_nearest_and_the_choices():
    assert look_up({"gaussian": 1, "none": 2}, "none", "channel_attn") == 2
    assert one_of("all", ("untouched", "all"), "norm") == "all"
    message = r"^unknown channel_attn 'gausian' \(did you mean 'gaussian'\?\): choose from gaussian, none$"
    with pytest.raises(ValueError, match=message):
        look_up({"gaussian": 1, "none": 2}, "gausian", "channel_attn")
    with pytest.raises(ValueError, match=r"^unknown mixer 'xyz': choose from pconv$"):
        one_of("xyz", ("pconv",), "mixer")


@each_entry
@settings(max_examples=8)
@given(
    quarters=st.integers(1, 3),
    batch=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    training=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    ratio=st.sampled_from([0.125, 0.25, 0.5, 0.75, 1]),
    norms=st.sampled_from([("untouched", "before"), ("all", "after")]),
    position=st.sampled_from(["euclidean", "product", "none"]),
)
def test_maps_of_any_size_keep_their_shape_and_have_gradients(
    table, name, quarters, batch, height, width, training, layout, ratio, norms, position
):
    options = {"partial_ratio": ratio, "ch_norm_position": norms[0], "sf_norm_position": norms[1]}
    options = {**options, "position_method": position} if table == "mixer" else {}
    module = build(table, name, 16 * quarters, **options).train(training)
    x = torch.randn(batch, 16 * quarters, height, width).contiguous(memory_format=layout).requires_grad_()
    y = module(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


@each_entry
def test_gradcheck(settled, table, name):
    module = settled(build(table, name, 8, dtype=torch.float64))
    names = [key for key, _ in module.named_parameters()]
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64, requires_grad=True)

    def call(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()), fast_mode=True)


@each_entry
@pytest.mark.parametrize("how", ["autocast", "bfloat16", "half"])
def test_half_precision_is_near_single(settled, table, name, how):
    module = settled(build(table, name, 8))
    for size in [(5, 4), (1, 1)]:
        x = 30 * torch.randn(2, 8, *size)
        expected = module.float()(x)
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                y = module(x)
        else:
            dtype = getattr(torch, how)
            y = module.to(dtype)(x.to(dtype))
            assert y.dtype == dtype
        assert y.isfinite().all()
        assert (y.float() - expected).norm() <= 0.05 * expected.norm()


@each_entry
@pytest.mark.parametrize("training", [False, True])
def test_constant_maps_have_finite_gradients(table, name, training):
    module = build(table, name, 8).train(training)
    for x in (torch.zeros(2, 8, 3, 3), torch.full((2, 8, 3, 3), 5.0), torch.zeros(1, 8, 1, 1), torch.randn(2, 8, 1, 1)):
        x.requires_grad_()
        module(x).square().sum().backward()
        assert x.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@each_entry
def test_scripted_exported_and_traced_by_fx(settled, table, name):
    module = settled(nn.Sequential(build(table, name, 8)))
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (torch.randn(2, 8, 5, 4),), dynamic_shapes=(dynamic,), strict=False)
    extractor = create_feature_extractor(module, {"0": "y"})
    for other in (torch.jit.script(module), program.module(), lambda x: extractor(x)["y"]):
        for size in [(5, 4), (4, 7)]:  # more than one window of 3 each way, as in the example
            x = torch.randn(3, 8, *size)
            torch.testing.assert_close(other(x), module(x))
