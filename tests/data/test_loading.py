import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from patnet import InputError
from patnet.data import Unreadable, UnreadableImage
from patnet.data.batches import AspectRatioBatches, eval_batches
from patnet.data.loading import PADDING, Draw, SeededDataset, TrainBatches, TrainLoader, epoch_order, eval_loader
from patnet.data.workers import blocked_signals


def draws(index):
    """The index and three random numbers, one of each generator."""
    drawn = [random.random(), float(np.random.rand()), torch.rand(()).item()]
    return torch.tensor([index, *drawn], dtype=torch.float64)


class Numbers(Dataset):
    """Items are `(index, label)`; those of `broken` cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableImage(f"{index}.png", "is damaged")
        return index, index % 2


def seeded(count, seed=0, transforms=((0, draws),), broken=(), **kwargs):
    return SeededDataset(Numbers(count, broken), seed, transforms, **kwargs)


def batches(count, batch_size, **kwargs):
    return TrainBatches(epoch_order(count, 0), count, batch_size, **kwargs)


@given(
    half=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    world=st.integers(1, 3),
    steps=st.integers(1, 3),
    rest=st.integers(0, 5),
)
@settings(max_examples=60)
def test_the_parts_make_up_the_global_batch_and_mixup_makes_the_same_pairs(half, accumulate, world, steps, rest):
    size = 2 * half
    global_size = size * accumulate * world
    count = global_size * steps + rest % global_size
    global_batches = list(batches(count, global_size))
    parts = [list(batches(count, size, accumulate=accumulate, world=world, rank=rank)) for rank in range(world)]
    assert all(len(of_rank) == steps * accumulate for of_rank in parts)

    def pairs(batch):
        return {frozenset((a, b)) for a, b in zip(batch, reversed(batch), strict=True)}

    for step, global_batch in enumerate(global_batches[:steps]):
        mine = [part for of_rank in parts for part in of_rank[step * accumulate : (step + 1) * accumulate]]
        assert sorted(draw for part in mine for draw in part) == sorted(global_batch)
        assert set().union(*map(pairs, mine)) == pairs(global_batch)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4))
def test_evaluation_takes_each_image_once_in_the_batches_of_one_process(count, size, world):
    shares = [eval_batches(count, size, world=world, rank=rank) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch for share in shares for batch in share if batch[0] >= 0]
    assert sorted(counted) == eval_batches(count, size)
    assert sorted(index for batch in counted for index in batch) == list(range(count))
    assert all(0 <= -1 - index < count for share in shares for batch in share for index in batch if index < 0)


def test_orders_of_an_epoch():
    order = epoch_order(50, 3)
    assert sorted(order(0)) == list(range(50))
    assert order(0) == epoch_order(50, 3)(0)
    assert len({tuple(o) for o in (order(0), order(1), epoch_order(50, 4)(0))}) == 3
    counts = np.bincount(epoch_order(60, 0, repeats=3)(0), minlength=60)
    assert sorted(counts)[-20:] == [3] * 20
    assert counts.sum() == 60
    drawn = epoch_order(1000, 0, weights=[0.0] * 500 + [1.0] * 500)(0)
    assert len(drawn) == 1000
    assert min(drawn) >= 500


RATIOS = [0.5, 0.75, 1.33, 1.5] * 11 + [0.75]


def test_batches_have_similar_aspect_ratios_and_take_every_image():
    sampler = AspectRatioBatches(RATIOS, 3, seed=1)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 15
    assert sorted(draw.item for batch in drawn for draw in batch) == list(range(45))
    assert [draw.position for batch in drawn for draw in batch] == list(range(45))
    assert sum(len({sampler.groups[draw.item] for draw in batch}) > 1 for batch in drawn) <= 3
    assert list(AspectRatioBatches(RATIOS, 3, seed=2)) != drawn
    sampler.seek(0, 3)
    assert list(sampler) == drawn[3:]
    sampler.seek(1, 0)
    assert list(sampler) != drawn
    parts = AspectRatioBatches(RATIOS, 1, seed=1, accumulate=3)
    assert [draw for part in parts for draw in part] == [draw for batch in drawn for draw in batch]
    two = [list(AspectRatioBatches(RATIOS, 2, seed=2, world=2, rank=rank)) for rank in (0, 1)]
    shared = [first + second for first, second in zip(*two, strict=True)]
    assert shared == list(AspectRatioBatches(RATIOS, 4, seed=2))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_random_numbers_depend_on_seed_epoch_and_position_alone(workers):
    def loaded(start, workers):
        loader = TrainLoader(seeded(24, 5), batches(24, 4), num_workers=workers)
        loader.load_state_dict(start)
        return [torch.cat([images for images, _, _ in loader]) for _ in range(2)]

    first, second = loaded({"epoch": 0, "given": 0}, 0)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, loaded({"epoch": 0, "given": 0}, workers), (first, second)))
    assert torch.equal(loaded({"epoch": 1, "given": 2}, workers)[0], second[8:])
    assert torch.equal(loaded({"epoch": 0, "given": 6}, workers)[0], second)  # an epoch's end is the next one's start
    loader = TrainLoader(seeded(12), batches(12, 4), num_workers=workers)
    list(zip(range(2), loader, strict=False))
    assert (loader.state_dict(), len(loader)) == ({"epoch": 0, "given": 2}, 3)  # whatever the workers have loaded


def test_the_transform_of_the_epoch_applies():
    dataset = seeded(4, transforms=[(0, lambda _: 192), (3, lambda _: 224)])
    assert [dataset[Draw(epoch, 0, 0)][0] for epoch in (0, 2, 3, 7, 1)] == [192, 192, 224, 224, 192]
    joint = seeded(4, transforms=[(0, lambda image, label: (image + 10, label - 1))], joint=True)
    assert joint[Draw(0, 0, 3)] == (13, 0, [])


def test_an_image_that_cannot_be_read_is_replaced_or_stops_the_run():
    image, label, faults = seeded(5, broken={3, 4})[Draw(0, 0, 3)]
    assert (int(image[0]), label) == (0, 0)
    assert faults == ["3.png: is damaged", "4.png: is damaged"]
    loader = TrainLoader(seeded(5, broken={3}), batches(5, 5), num_workers=1)
    assert [found for _, _, found in loader] == [["3.png: is damaged"]]
    for workers in (0, 1):  # also from a loader process the message is one line
        for broken, message in (({3}, r"3\.png: is damaged"), (set(range(5)), "no image of the data set can be read")):
            strict = len(broken) == 1
            loader = TrainLoader(seeded(5, broken=broken, strict=strict), batches(5, 5), num_workers=workers)
            with pytest.raises(InputError, match=f"^{message}"):
                list(loader)


def test_evaluation_stops_and_prediction_reports():
    def to_tensor(image):
        return torch.full((2,), image if isinstance(image, int) else 0)

    with pytest.raises(UnreadableImage, match=r"^1\.png: is damaged$"):
        list(eval_loader(Numbers(3, broken={1}), 2, transform=to_tensor))
    ((images, labels, indices),) = eval_loader(Numbers(3, broken={1}), 3, transform=to_tensor, policy="report")
    assert images.tolist() == [[0, 0], [0, 0], [2, 2]]
    assert labels == [0, Unreadable("1.png: is damaged"), 0]
    assert indices == [0, 1, 2]


def test_batches_that_cannot_be_distributed_are_refused():
    with pytest.raises(InputError, match="must be even"):
        batches(30, 3, accumulate=2)
    with pytest.raises(InputError, match="30 training images are less than one global batch of 32"):
        batches(30, 8, world=4)
    with pytest.raises(InputError, match="global batch of 8"):
        AspectRatioBatches(RATIOS[:7], 4, seed=0, world=2)
    assert [len(batch) for batch in batches(5, 8)] == [5]  # a single process takes what there is


def test_padding_is_marked():
    loaded = [list(eval_loader(Numbers(5), 2, transform=torch.tensor, world=2, rank=rank)) for rank in range(2)]
    assert [indices for _, _, indices in loaded[0]] == [[0, 1], [4]]
    assert [indices for _, _, indices in loaded[1]] == [[2, 3], [PADDING] * 2]


class Pids(Dataset):
    """Items are the id of the process that loads them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(0.05)
        return torch.tensor(os.getpid()), 0


def test_loader_processes_ignore_the_signals_that_stop_a_run():
    batches = iter(eval_loader(Pids(), 1, num_workers=1))
    pid = int(next(batches)[0])
    assert pid != os.getpid()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(pid, number)
    assert [int(images) for images, _, _ in batches] == [pid] * 3


def test_a_process_is_started_with_these_signals_blocked():
    show = "import signal; print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with blocked_signals():
        inside = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert inside.stdout == "True\n"
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SCRIPT = """
import os, signal, time
import torch
from patnet.data.loading import eval_loader

class Slow:
    def __getstate__(self):
        return "not empty"
    def __setstate__(self, state):  # in a process of a fork server, before its worker function
        print(os.getpid(), flush=True)
        time.sleep(1)
    def __getitem__(self, index):
        time.sleep(0.1)
        return torch.tensor(os.getpid()), 0
    def __len__(self):
        return 6

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: print("stopped", flush=True))
    batches = iter(eval_loader(Slow(), 1, num_workers=1, multiprocessing_context="forkserver"))
    for _ in range(6):
        print(int(next(batches)[0]), flush=True)
    raise RuntimeError("with a worker that still runs")
"""


@pytest.mark.slow
def test_loader_processes_of_a_fork_server_ignore_signals_from_their_start(tmp_path):
    """Clusters send SIGTERM to all processes of a run; and a program that fails does not wait for its workers."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, script], **options) as process:
        first = process.stdout.readline()
        os.killpg(process.pid, signal.SIGTERM)
        out = process.stdout.read()
    assert process.returncode == 1
    assert "with a worker that still runs" in out
    assert (out.count(first), out.count("stopped")) == (6, 1)
