import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patnet.nn import BatchNorm2d


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    dim=st.integers(2, 6),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    training=st.booleans(),
    momentum=st.sampled_from([0.1, 0.5, None]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    start=st.integers(0, 1),
)
def test_equals_torchs_on_views_of_channels_too(batch, dim, height, width, training, momentum, memory_format, start):
    ours, theirs = BatchNorm2d(dim - 1, momentum=momentum), nn.BatchNorm2d(dim - 1, momentum=momentum)
    image, gradient = torch.randn(2, batch, dim, height, width)
    results = []
    for norm in (theirs.train(training), ours.train(training)):
        x = image.clone(memory_format=memory_format).requires_grad_()
        view = x[:, start : start + dim - 1]
        if norm is theirs and training and batch * height * width == 1:
            with pytest.raises(ValueError, match="more than 1 value"):
                theirs(view)
            assert ours(view).isfinite().all()
            return
        for _ in range(2):
            y = norm(view)
        y.backward(gradient.contiguous(memory_format=memory_format)[:, start : start + dim - 1])
        results.append([y, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)


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
    for training in (False, True):
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(module.train(training)(x), norm.train(training)(x))
