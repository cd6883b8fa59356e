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
from patnet.data.batches import AspectRatioBatches, Batches, Draw, TrainBatches
from patnet.data.loading import PADDING, SeededDataset, TrainLoader, eval_loader, starting_workers

RATIOS = [0.5, 0.75, 1.33, 1.5] * 11 + [0.75]


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


def mixup_pairs(batch):
    return {frozenset((a, b)) for a, b in zip(batch, reversed(batch), strict=True)}


@settings(max_examples=60)
@given(
    half=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    world=st.integers(1, 3),
    steps=st.integers(1, 3),
    rest=st.integers(0, 5),
)
def test_the_parts_make_up_the_global_batch_and_mixup_makes_the_same_pairs(half, accumulate, world, steps, rest):
    batches = Batches(2 * half, accumulate, world)
    count = batches.global_size * steps + rest % batches.global_size
    ratios = np.random.default_rng(0).choice(RATIOS, count)
    for make, images in ((TrainBatches, count), (AspectRatioBatches, ratios)):
        global_batches = list(make(images, Batches(batches.global_size), 0))
        parts = [list(make(images, batches, 0, rank=rank)) for rank in range(world)]
        assert all(len(of_rank) == steps * accumulate for of_rank in parts)
        for step, global_batch in enumerate(global_batches[:steps]):
            mine = [part for of_rank in parts for part in of_rank[step * accumulate : (step + 1) * accumulate]]
            assert sorted(draw for part in mine for draw in part) == sorted(global_batch)
            if make is TrainBatches:
                assert set().union(*map(mixup_pairs, mine)) == mixup_pairs(global_batch)


def test_orders_of_an_epoch():
    def order(count, seed, epoch=0, **kwargs):
        return TrainBatches(count, Batches(count), seed, **kwargs).order(epoch)

    assert sorted(order(50, 3)) == list(range(50))
    assert order(50, 3) == order(50, 3)
    assert len({tuple(o) for o in (order(50, 3), order(50, 3, epoch=1), order(50, 4))}) == 3
    counts = np.bincount(order(60, 0, repeats=3), minlength=60)
    assert (counts.sum(), sorted(counts)[-20:]) == (60, [3] * 20)
    drawn = order(1000, 0, weights=[0.0] * 500 + [1.0] * 500)
    assert (len(drawn), min(drawn) >= 500) == (1000, True)


def test_batches_have_similar_aspect_ratios_and_take_every_image():
    sampler = AspectRatioBatches(RATIOS, Batches(3), seed=1)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 15
    assert sorted(draw.item for batch in drawn for draw in batch) == list(range(45))
    assert [draw.position for batch in drawn for draw in batch] == list(range(45))
    assert sum(len({sampler.groups[draw.item] for draw in batch}) > 1 for batch in drawn) <= 3
    sampler.seek(0, 3)
    assert list(sampler) == drawn[3:]
    assert sampler.order(1) != sampler.order(0)


@pytest.mark.parametrize(
    ("make", "images", "batches", "message"),
    [
        (TrainBatches, 30, Batches(3, accumulate=2), "must be even"),
        (TrainBatches, 30, Batches(8, devices=4), "30 training images are less than one global batch of 32"),
        (AspectRatioBatches, RATIOS[:7], Batches(4, devices=2), "global batch of 8"),
    ],
)
def test_batches_that_cannot_be_distributed_are_refused(make, images, batches, message):
    with pytest.raises(InputError, match=message):
        make(images, batches, 0)
    assert [len(batch) for batch in make(images, Batches(99), 0)] == [30 if images == 30 else 7]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_random_numbers_depend_on_seed_epoch_and_position_alone(workers):
    def loaded(epoch, given, workers):
        loader = TrainLoader(seeded(24, 5), TrainBatches(24, Batches(4), 0), num_workers=workers)
        loader.load_state_dict({"epoch": epoch, "given": given})
        return [torch.cat([images for images, _, _ in loader]) for _ in range(2)]

    first, second = loaded(0, 0, 0)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, loaded(0, 0, workers), (first, second)))
    assert torch.equal(loaded(1, 2, workers)[0], second[8:])
    assert torch.equal(loaded(0, 6, workers)[0], second)  # an epoch's end is the next one's start
    loader = TrainLoader(seeded(12), TrainBatches(12, Batches(4), 0), num_workers=workers)
    list(zip(range(2), loader, strict=False))
    assert (loader.state_dict(), len(loader)) == ({"epoch": 0, "given": 2}, 3)  # whatever the workers have loaded


def test_the_transform_of_the_epoch_applies():
    dataset = seeded(4, transforms=[(0, lambda _: 192), (3, lambda _: 224)], stack=False)
    assert [dataset[[Draw(epoch, 0, 0)]][0] for epoch in (0, 2, 3, 7, 1)] == [[192], [192], [224], [224], [192]]
    joint = seeded(4, transforms=[(0, lambda image, label: (image + 10, label - 1))], joint=True, stack=False)
    assert joint[[Draw(0, 0, 3)]] == ([13], [0], [])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_replaced_or_stops_the_run(workers):
    def load(broken, strict=False):
        ((images, labels, faults),) = TrainLoader(
            seeded(5, broken=broken, strict=strict), TrainBatches(5, Batches(5), 0), num_workers=workers
        )
        return sorted(images[:, 0].tolist()), labels.tolist(), faults

    images, _, faults = load({3, 4})
    assert images == [0, 0, 0, 1, 2]
    assert sorted(faults) == ["3.png: is damaged", "4.png: is damaged", "4.png: is damaged"]
    with pytest.raises(InputError, match=r"^3\.png: is damaged$"):  # from a loader process too
        load({3}, strict=True)
    with pytest.raises(InputError, match=r"^no image of the data set can be read"):
        load(set(range(5)))


def test_evaluation_stops_and_prediction_reports():
    def to_tensor(image):
        return torch.full((2,), image if isinstance(image, int) else 0)

    with pytest.raises(UnreadableImage, match=r"^1\.png: is damaged$"):
        list(eval_loader(Numbers(3, broken={1}), 2, transform=to_tensor))
    ((images, labels, indices),) = eval_loader(Numbers(3, broken={1}), 3, transform=to_tensor, policy="report")
    assert images.tolist() == [[0, 0], [0, 0], [2, 2]]
    assert labels == [0, Unreadable("1.png: is damaged"), 0]
    assert indices == [0, 1, 2]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4))
def test_evaluation_takes_each_image_once_in_the_batches_of_one_process(count, size, world):
    def shares(world):
        return [list(eval_loader(Numbers(count), size, stack=False, world=world, rank=rank)) for rank in range(world)]

    loaded = shares(world)
    assert len({len(share) for share in loaded}) == 1
    counted = [batch for share in loaded for batch in share if batch[2] != [PADDING] * len(batch[0])]
    assert sorted(counted) == shares(1)[0]
    assert all(images == indices for images, _, indices in counted)
    assert sorted(index for *_, indices in counted for index in indices) == list(range(count))


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


def test_loader_processes_are_started_with_these_signals_blocked():
    show = "import signal; print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with starting_workers():
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
