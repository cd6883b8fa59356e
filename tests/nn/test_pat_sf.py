import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import Full_sf, PAT_sf

sides = st.integers(1, 5)


@settings(max_examples=30)
@given(
    convolved=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    batch=st.integers(1, 2),
    height=sides,
    width=sides,
    method=st.sampled_from(["euclidean", "product", "none"]),
    mode=st.sampled_from(["bias", "contextual"]),
)
def test_equals_the_equations(settled, convolved, heads, head_dim, batch, height, width, method, mode):
    untouched = heads * head_dim
    dim = convolved + untouched
    block = settled(
        PAT_sf(
            dim,
            convolved / dim,
            num_heads=heads,
            position_method=method,
            position_mode=mode,
            dtype=torch.float64,
        )
    )
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    y = block(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[:, :convolved], F.conv2d(x[:, :convolved], block.conv.weight, padding=1))

    cells = [(r, c) for r in range(height) for c in range(width)]  # offsets stay below alpha = 20, so g(d) = d
    for n in range(batch):
        x2 = torch.stack([x[n, convolved:, r, c] for r, c in cells])  # (H * W, C_u)
        mean, var = x2.mean(1, keepdim=True), x2.var(1, correction=0, keepdim=True)
        tokens = (x2 - mean) / (var + 1e-6).sqrt() * block.norm.weight + block.norm.bias
        q, k, v = (tokens @ block.qkv.weight.T).split(untouched, dim=1)
        heads_out = []
        for h in range(heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            scaled = q[:, part] / math.sqrt(head_dim)
            logits = scaled @ k[:, part].T
            for i, (ri, ci) in enumerate(cells):
                for j, (rj, cj) in enumerate(cells):
                    if method == "none":
                        continue
                    near = round(math.hypot(ri - rj, ci - cj)) + 40
                    b = near if method == "euclidean" else (ri - rj + 40) * 81 + ci - cj + 40
                    table = block.position.table[h]
                    logits[i, j] += table[b] if mode == "bias" else scaled[i] @ table[:, b]
            heads_out.append(torch.softmax(logits, dim=1) @ v[:, part])
        y2 = torch.cat(heads_out, dim=1) @ block.proj.weight.T + block.proj.bias
        torch.testing.assert_close(torch.stack([y[n, convolved:, r, c] for r, c in cells]), y2)


def without_norm(block):
    """A copy of `block` whose attention takes its input as it is."""
    block = copy.deepcopy(block)
    block.norm = torch.nn.Identity()
    return block


@settings(max_examples=20)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    height=sides,
    width=sides,
    full=st.booleans(),
    position=st.sampled_from(["before", "after"]),
)
def test_where_the_norm_stands_and_what_full_attends_to(settled, heads, head_dim, height, width, full, position):
    attended = heads * head_dim
    dim = attended if full else attended + 2
    options = {"num_heads": heads, "norm_position": position, "dtype": torch.float64}
    block = settled(Full_sf(dim, **options) if full else PAT_sf(dim, 2 / dim, **options))
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    bare = without_norm(block)

    def layer_norm(x, norm):
        mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    x1, x2 = (x, F.conv2d(x, block.conv.weight, padding=1)) if full else (x[:, :2], x[:, 2:])
    y = bare.attend(layer_norm(x2, block.norm) if position == "before" else x2)
    if not full:
        y = torch.cat((F.conv2d(x1, block.conv.weight, padding=1), y), dim=1)
    torch.testing.assert_close(block(x), y if position == "before" else layer_norm(y, block.norm_all))


@pytest.mark.parametrize("method", ["euclidean", "product"])
@pytest.mark.parametrize("mode", ["bias", "contextual"])
def test_a_new_block_attends_by_content_alone(method, mode):
    with_position = PAT_sf(16, num_heads=3, position_method=method, position_mode=mode).eval()
    without = PAT_sf(16, num_heads=3, position_method="none").eval()
    without.load_state_dict(with_position.state_dict(), strict=False)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(with_position(x), without(x))


@pytest.mark.parametrize("x", [torch.zeros(2, 8, 3, 3), torch.full((2, 8, 3, 3), 5.0), torch.randn(1, 8, 1, 1)])
def test_gradients_are_finite_on_flat_maps(x):
    block = PAT_sf(8, num_heads=2).train()
    x = x.clone().requires_grad_()
    block(x).square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *block.parameters()))


@pytest.mark.parametrize("mode", ["bias", "contextual"])
def test_gradcheck(settled, mode):
    block = settled(PAT_sf(4, num_heads=1, position_mode=mode, dtype=torch.float64))
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    table = block.position.table
    assert torch.autograd.gradcheck(
        lambda t: torch.func.functional_call(block, {"position.table": t}, (x.detach(),)).sum(),
        (table.detach().requires_grad_(),),
        fast_mode=True,
    )


@pytest.mark.parametrize("mode", ["bias", "contextual"])
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


@pytest.mark.parametrize("mode", ["bias", "contextual"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_follows_the_size_and_its_gradient(settled, mode, backend):
    torch._dynamo.reset()
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for size in [(2, 3), (3, 2), (1, 5), (4, 4), (2, 3)]:
        x = torch.randn(2, 8, *size)
        y, z = block(x), compiled(x)
        torch.testing.assert_close(z, y)
        torch.testing.assert_close(
            torch.autograd.grad(z.square().sum(), block.position.table),
            torch.autograd.grad(y.square().sum(), block.position.table),
        )


@pytest.mark.parametrize("mode", ["bias", "contextual"])
def test_exported_follows_the_size(settled, mode):
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    block(torch.randn(1, 8, 4, 6))  # what a call left behind must not be written into the program
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(block, (torch.randn(2, 8, 4, 6),), dynamic_shapes=(dynamic,), strict=False)
    for size in [(4, 6), (6, 4), (3, 3), (7, 2)]:
        x = torch.randn(3, 8, *size)
        torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.parametrize("mode", ["bias", "contextual"])
def test_scripted_traced_and_copied_compute_the_same(settled, mode):
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    x = torch.randn(2, 8, 3, 5)
    copies = (
        torch.jit.script(block),
        torch.jit.trace(block, (x,), check_trace=False),
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


def test_refuses_heads_that_do_not_divide_and_says_which_do():
    with pytest.raises(
        ValueError, match=r"num_heads=5 does not divide the 12 attended of 16 channels: .*1, 2, 3, 4, 6, 12"
    ):
        PAT_sf(16, num_heads=5)
    with pytest.raises(ValueError, match="num_heads=0"):
        PAT_sf(16, num_heads=0)
    with pytest.raises(ValueError, match="unknown position method 'euclidian'"):
        PAT_sf(16, num_heads=3, position_method="euclidian")
    with pytest.raises(ValueError, match="to attend to"):
        PAT_sf(16, 1.0, num_heads=3)
    with pytest.raises(ValueError, match=r"unknown norm_position 'befor' \(did you mean 'before'\?\)"):
        PAT_sf(16, num_heads=3, norm_position="befor")
    with pytest.raises(ValueError, match=r"num_heads=3 does not divide the 16 attended of 16 channels"):
        Full_sf(16, num_heads=3)
