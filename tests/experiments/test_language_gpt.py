"""The language model: what it computes, and that its cached form computes the same."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language.gpt import GPT, Cache, GaussianGate, GPTConfig
from language.protocol import CONFIGURATIONS, SIZES, flops, model_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from patnet import InputError


def model_of(name: str, seed: int, **changes) -> GPT:
    """A small model of a configuration with weights large enough that every part matters."""
    torch.manual_seed(seed)
    config = replace(model_config("small", name, 50, context=40), layers=4, width=32, **changes)
    model = GPT(replace(config, gated=min(config.gated, 2))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGURATIONS)),
    cuts=st.lists(st.integers(1, 39), max_size=6, unique=True),
    length=st.integers(1, 40),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
@torch.inference_mode()
def test_cached_in_any_pieces_equals_parallel(name, cuts, length, batch, seed):
    model = model_of(name, seed)
    tokens = torch.randint(50, (batch, length))
    parallel = model(tokens)
    cache = Cache(length)
    bounds = [0, *sorted(cut for cut in cuts if cut < length), length]
    pieces = [model(tokens[:, a:b], cache) for a, b in pairwise(bounds)]
    assert cache.length == length
    torch.testing.assert_close(torch.cat(pieces, 1), parallel, atol=1e-5 * parallel.abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.inference_mode()
def test_token_by_token_equals_parallel_and_no_token_sees_the_next(name):
    model = model_of(name, 0)
    tokens = torch.randint(50, (1, 40))
    parallel, cache = model(tokens), Cache(40)
    single = torch.cat([model(tokens[:, i : i + 1], cache) for i in range(40)], 1)
    torch.testing.assert_close(single, parallel, atol=1e-5 * parallel.abs().max().item(), rtol=0)
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 50
    other = model(changed)
    torch.testing.assert_close(other[:, :20], parallel[:, :20], atol=1e-5, rtol=0)
    assert (other[:, 20:] - parallel[:, 20:]).abs().amax(-1).min() > 1e-4  # every later token sees it


@given(offset=st.floats(-100, 100), spread=st.floats(0.01, 10), seed=st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_the_gate_reads_mean_and_std_of_the_past(offset, spread, seed):
    x = offset + spread * torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(seed))
    mean, std = GaussianGate.statistics(x, 0, {})
    for t in (1, 2, 10, 300):
        past = x[:, :t].double()
        torch.testing.assert_close(mean[:, t - 1].double(), past.mean(1), atol=1e-5 * (abs(offset) + spread), rtol=0)
        if t > 2:
            torch.testing.assert_close(
                std[:, t - 1].double(), past.std(1), atol=1e-4 * spread + 2e-6 * abs(offset), rtol=1e-3
            )


def test_no_gradient_is_undefined_where_the_past_is_constant():
    x = torch.ones(1, 5, 2, requires_grad=True)
    gate = GaussianGate(2)
    gate(x, None).square().sum().backward()
    assert x.grad.isfinite().all()


def test_nanogpt_is_gpt2():
    transformers = pytest.importorskip("transformers")
    ours = model_of("nanogpt", 3)
    sizes = {"vocab_size": 50, "n_positions": 40, "n_embd": 32, "n_layer": 4, "n_head": 4}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, activation_function="gelu")).eval()
    with torch.inference_mode():
        for parameter in gpt2.parameters():
            if parameter.ndim == 1:
                parameter.zero_()  # biases, of which ours has none
        state, theirs = ours.state_dict(), gpt2.transformer
        theirs.wte.weight.copy_(state["tokens.weight"])
        theirs.wpe.weight.copy_(state["positions.weight"])
        theirs.ln_f.weight.copy_(state["norm.weight"])
        for i, block in enumerate(theirs.h):
            names = {"attention.qkv": block.attn.c_attn, "attention.proj": block.attn.c_proj}
            for name, layer in (names | {"fc": block.mlp.c_fc, "proj": block.mlp.c_proj}).items():
                layer.weight.copy_(state[f"blocks.{i}.{name}.weight"].T)
            block.ln_1.weight.copy_(state[f"blocks.{i}.norm1.weight"])
            block.ln_2.weight.copy_(state[f"blocks.{i}.norm2.weight"])
        tokens = torch.randint(50, (2, 40))
        torch.testing.assert_close(ours(tokens), gpt2(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_flops_are_those_that_pytorch_counts(name):
    config = model_config("small", name, 2048, 64)
    model, context = GPT(config), 64
    # On a CPU it does not count the fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, context, dtype=torch.long))
    counted = counter.get_total_flops() / context
    attended = (flops(config, context) - flops(config, 0)) / (2 * context)  # channels, over all blocks
    # PyTorch counts attention as if it were not causal: `context` positions for each token, not half of them.
    assert flops(config, context) + 2 * attended * (context - 1) == pytest.approx(counted)


def test_configurations_have_the_costs_that_they_are_compared_at():
    for size in SIZES:
        costs = {name: flops(model_config(size, name, 2048)) for name in CONFIGURATIONS}
        target = costs["pat_sf-1-2"]
        assert all(abs(costs[name] / target - 1) < 0.06 for name in ("narrow", "shallow"))
        assert costs["narrow"] < costs["full"]
        assert costs["full"] == costs["nanogpt"] < costs["full-conv"]
    caches = {}
    for name in CONFIGURATIONS:
        cache = Cache(400)
        GPT(model_config("small", name, 50))(torch.zeros(1, 3, dtype=torch.long), cache)
        caches[name] = cache.nbytes()
    assert caches["gqa-1-2"] == pytest.approx(caches["pat_sf-1-2"], rel=0.02)
    assert caches["gqa-1-4"] == pytest.approx(caches["pat_sf-3-4"], rel=0.03)
    assert caches["full"] == 2 * caches["gqa-1-2"]


def test_parameters_are_those_of_the_sizes():
    count = {size: sum(p.numel() for p in GPT(model_config(size, "full", 2048)).parameters()) for size in SIZES}
    assert 1e6 < count["small"] < count["medium"] < 5e6 < count["large"] < 30e6 < count["30m"] < 35e6


def test_bad_input():
    model = GPT(GPTConfig(50, 8, 1, 16, 2))
    with pytest.raises(InputError, match="9 positions: the context of this model is 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(InputError, match="9 positions"):
        list(model.generate(torch.zeros(4, dtype=torch.long), 6))
    with pytest.raises(InputError, match=r"pat_hc: no configuration \(did you mean 'pat_ch'\?\)"):
        model_config("small", "pat_hc", 50)


def test_generation_is_the_same_with_a_seed():
    model = model_of("pat_ch", 1)
    prompt = torch.tensor([1, 2, 3])
    first, again, other = (list(model.generate(prompt, 20, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
