import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import Full_sf, PAT_sf

sides = st.integers(1, 5)
each_mode = pytest.mark.parametrize("mode", ["bias", "contextual"])


@settings(max_examples=40)
@given(
    convolved=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    height=sides,
    width=sides,
    method=st.sampled_from(["euclidean", "product", "none"]),
    mode=st.sampled_from(["bias", "contextual"]),
    norm=st.sampled_from(["before", "after"]),
    full=st.booleans(),
)
def test_equals_the_equations(settled, equations, convolved, heads, head_dim, height, width, method, mode, norm, full):
    dim = heads * head_dim + (0 if full else convolved)
    options = {"position_method": method, "position_mode": mode, "sf_norm_position": norm, "dtype": torch.float64}
    options["num_heads"] = heads
    block = settled(Full_sf(dim, **options) if full else PAT_sf(dim, convolved / dim, **options))
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    y1 = F.conv2d(x if full else x[:, :convolved], block.conv.weight, padding=1)
    x2 = y1 if full else x[:, convolved:]
    y2 = equations.self_attention(equations.layer_norm(x2, block.norm) if norm == "before" else x2, block)
    y = y2 if full else torch.cat((y1, y2), dim=1)
    torch.testing.assert_close(block(x), y if norm == "before" else equations.layer_norm(y, block.norm_all))
    weights = block.attention(x2)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(block.fuse().attention(x2), weights)


@each_mode
@pytest.mark.parametrize("method", ["euclidean", "product"])
def test_a_new_block_attends_by_content_alone(method, mode):
    with_position = PAT_sf(16, num_heads=3, position_method=method, position_mode=mode).eval()
    without = PAT_sf(16, num_heads=3, position_method="none").eval()
    without.load_state_dict(with_position.state_dict(), strict=False)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(with_position(x), without(x))


@each_mode
@pytest.mark.parametrize("how", ["autocast", "bfloat16", "half"])
def test_half_precision_with_large_activations(settled, how, mode):
    block = settled(PAT_sf(16, num_heads=3, position_mode=mode))
    with torch.no_grad():
        block.qkv.weight.mul_(0.3)
    x = 1e3 * torch.randn(2, 16, 6, 6)
    expected = block(x)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
    else:
        dtype = getattr(torch, how)
        y = block.to(dtype)(x.to(dtype))
    assert y.isfinite().all()
    for part in (slice(0, 4), slice(4, 16)):  # the convolution and the attention differ in size
        assert (y.float() - expected)[:, part].norm() / expected[:, part].norm() < 0.03


def test_dropout_acts_in_training_alone():
    block = PAT_sf(16, num_heads=3)
    torch.nn.init.normal_(block.proj.weight)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block.eval()(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))
    still = PAT_sf(16, num_heads=3, attn_drop=0, proj_drop=0).train()
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize(("mode", "backend"), [("bias", "aot_eager"), ("contextual", "eager")])
def test_compiled_follows_the_size_and_its_gradient(settled, mode, backend):
    torch._dynamo.reset()
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for size in [(2, 3), (3, 2)]:
        x = torch.randn(2, 8, *size)
        y, z = block(x), compiled(x)
        torch.testing.assert_close(z, y)
        torch.testing.assert_close(
            torch.autograd.grad(z.square().sum(), block.position.table),
            torch.autograd.grad(y.square().sum(), block.position.table),
        )


@each_mode
def test_exported_follows_the_size(settled, mode):
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    block(torch.randn(1, 8, 4, 6))  # cached indices of an earlier call must not be written into the program
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(block, (torch.randn(2, 8, 4, 6),), dynamic_shapes=(dynamic,), strict=False)
    for size in [(4, 6), (6, 4), (3, 3), (7, 2)]:
        x = torch.randn(3, 8, *size)
        torch.testing.assert_close(program.module()(x), block(x))


@each_mode
def test_scripted_traced_and_copied_compute_the_same(settled, mode):
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    copies = (
        torch.jit.script(block),
        torch.jit.trace(block, (torch.randn(2, 8, 3, 5),), check_trace=False),
        copy.deepcopy(block),
        pickle.loads(pickle.dumps(block)),
    )
    for other in copies:
        for size in [(3, 5), (4, 4)]:
            x = torch.randn(2, 8, *size)
            torch.testing.assert_close(other(x), block(x))


def test_gradients_per_sample(settled):
    block = settled(PAT_sf(8, num_heads=2, position_mode="contextual"))
    parameters = {name: parameter.detach() for name, parameter in block.named_parameters()}
    x = torch.randn(3, 8, 2, 3)

    def loss(parameters, one):
        return torch.func.functional_call(block, parameters, (one[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    block(x).square().sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PAT_sf(16, num_heads=5), "num_heads=5 does not divide the 12 attended channels: .*1, 2, 3, 4, 6, 12"),
        (lambda: PAT_sf(16, num_heads=0), "num_heads=0"),
        (lambda: PAT_sf(16, num_heads=3, position_method="euclidian"), "unknown position method 'euclidian'"),
        (lambda: PAT_sf(16, 1.0, num_heads=3), "to attend to"),
        (lambda: PAT_sf(16, num_heads=3, sf_norm_position="befor"), r"sf_norm_position 'befor' \(did you mean"),
        (lambda: Full_sf(16, num_heads=3), "num_heads=3 does not divide the 16 attended channels"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
