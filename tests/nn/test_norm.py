import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patnet.nn import BatchNorm2d


@settings(max_examples=30)
@given(
    batch=st.integers(1, 3),
    dim=st.integers(1, 5),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    training=st.booleans(),
    momentum=st.sampled_from([0.1, 0.5, None]),
)
def test_equals_torchs_wherever_that_one_works(batch, dim, height, width, training, momentum):
    ours, theirs = BatchNorm2d(dim, momentum=momentum), nn.BatchNorm2d(dim, momentum=momentum)
    for norm in (ours, theirs):
        norm.train(training)
    for _ in range(2):
        x = torch.randn(batch, dim, height, width)
        if training and batch * height * width == 1:
            with pytest.raises(ValueError, match="more than 1 value"):
                theirs(x)
            assert ours(x).isfinite().all()
            return
        assert torch.equal(ours(x), theirs(x))
    for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("scripted", [False, True])
def test_one_value_per_channel_trains_on_the_running_statistics(settled, scripted):
    norm = settled(BatchNorm2d(4))
    x = torch.randn(1, 4, 1, 1, requires_grad=True)
    expected = norm(x)
    before = [buffer.clone() for buffer in norm.buffers()]
    module = torch.jit.script(norm.train()) if scripted else norm.train()
    y = module(x)
    torch.testing.assert_close(y, expected)
    for buffer, old in zip(module.buffers(), before, strict=True):
        assert torch.equal(buffer, old)
    y.sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_scripted_gives_the_same(settled, training):
    norm = settled(BatchNorm2d(3)).train(training)
    scripted = torch.jit.script(norm)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(scripted(x), norm(x))


@settings(max_examples=30)
@given(
    batch=st.integers(1, 3),
    dim=st.integers(2, 6),
    side=st.integers(2, 4),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    start=st.integers(0, 1),
)
def test_views_of_channels_train_as_torchs_do(batch, dim, side, memory_format, start):
    ours, theirs = BatchNorm2d(dim - 1), nn.BatchNorm2d(dim - 1)
    picture = torch.randn(batch, dim, side, side).contiguous(memory_format=memory_format)
    gradient = torch.randn(batch, dim, side, side).contiguous(memory_format=memory_format)
    results = []
    for norm in (ours, theirs):
        x = picture.clone(memory_format=torch.preserve_format).requires_grad_()
        y = norm(x[:, start : start + dim - 1])
        y.backward(gradient[:, start : start + dim - 1])
        results.append([y, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)
