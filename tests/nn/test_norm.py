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
