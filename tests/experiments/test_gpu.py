"""Runs side by side in one process, on the CPU with streams that do nothing, and steps as CUDA graphs."""

from contextlib import nullcontext

import gpu
import pytest
import torch


@pytest.fixture
def no_streams(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_works_are_interleaved_and_all_end(no_streams, count):
    order = []

    def work(number):
        for step in range(number):
            order.append((number, step))
            yield
        if number == 2:
            raise ValueError("broken")
        return {"number": number}

    found = dict(gpu.interleave([lambda number=number: work(number) for number in range(4)], count))
    assert isinstance(found.pop(2), ValueError)
    assert found == {number: {"number": number} for number in (0, 1, 3)}
    assert sorted(order) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    if count == 1:
        assert order == sorted(order)
    if count == 5:
        assert order == sorted(order, key=lambda pair: pair[::-1])  # a step of each in turn


def losses(device, count=12):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, fused=True)
    inputs = torch.randn(count, 32, 6, generator=torch.Generator().manual_seed(1)).to(device)
    x = inputs[0].clone()

    def compute():
        loss = (network(x) - x[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step = gpu.Step(compute, optimizer, device)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.8**step)
    for some in inputs:
        x.copy_(some)
        yield step()
        schedule.step()


def test_a_step_computes_its_loss_in_each_call():
    found = list(losses("cpu"))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs take a GPU")
def test_captured_steps_equal_those_of_the_cpu():
    def work():
        found = []
        for loss in losses("cuda"):
            found.append(loss)
            yield
        return {"losses": torch.stack(found).cpu()}

    expected = torch.stack(list(losses("cpu")))
    for _, found in gpu.interleave([work] * 3, 2):
        torch.testing.assert_close(found["losses"], expected, rtol=1e-3, atol=1e-4)
