import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from patnet import InputError
from patnet.data.loading import (
    NOT_COUNTED,
    Draw,
    EvalBatches,
    SeededPictures,
    TrainBatches,
    TrainLoader,
    eval_loader,
    order_of,
)


class Numbers(Dataset):
    """Items are their index and three draws, one of each generator; those of `broken` cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken, self.transform = count, broken, None

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise InputError(f"{index}.png: is damaged")
        drawn = [random.random(), float(np.random.rand()), torch.rand(()).item()]
        size = self.transform(index) if self.transform else 0
        return torch.tensor([index, size, *drawn], dtype=torch.float64), index % 2


def batches(count, batch_size, **kwargs):
    return TrainBatches(order_of(count, 0), count, batch_size, **kwargs)


@given(
    half=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    world=st.integers(1, 3),
    steps=st.integers(1, 3),
    rest=st.integers(0, 5),
)
@settings(max_examples=60)
def test_the_parts_of_a_step_are_the_whole_and_mixup_makes_the_same_pairs(half, accumulate, world, steps, rest):
    size = 2 * half
    whole_size = size * accumulate * world
    count = whole_size * steps + rest % whole_size
    whole = list(batches(count, whole_size))
    parts = [list(batches(count, size, accumulate=accumulate, world=world, rank=rank)) for rank in range(world)]
    assert all(len(of_rank) == steps * accumulate for of_rank in parts)
    for step, together in enumerate(whole[:steps]):
        mine = [part for of_rank in parts for part in of_rank[step * accumulate : (step + 1) * accumulate]]
        assert sorted(draw for part in mine for draw in part) == sorted(together)

        def pairs(batch):
            return {frozenset((a, b)) for a, b in zip(batch, reversed(batch), strict=True)}

        assert set().union(*map(pairs, mine)) == pairs(together)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4))
def test_evaluation_sees_each_picture_once_in_the_batches_of_one_process(count, size, world):
    alone = list(EvalBatches(count, size))
    shares = [list(EvalBatches(count, size, world=world, rank=rank)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch for share in shares for batch in share if batch[0] >= 0]
    assert sorted(counted) == sorted(alone)
    assert sorted(index for batch in counted for index in batch) == list(range(count))
    filling = [index for share in shares for batch in share for index in batch if index < 0]
    assert all(0 <= -1 - index < count for index in filling)


def test_an_epoch_has_each_picture_once_in_an_order_of_its_own():
    order = order_of(50, 3)
    assert sorted(order(0)) == list(range(50))
    assert order(0) == order_of(50, 3)(0)
    assert order(0) != order(1)
    assert order(0) != order_of(50, 4)(0)


def test_repeats_and_weights():
    counts = np.bincount(order_of(60, 0, repeats=3)(0), minlength=60)
    assert sorted(counts)[-20:] == [3] * 20
    assert counts.sum() == 60
    drawn = order_of(1000, 0, weights=[0.0] * 500 + [1.0] * 500)(0)
    assert len(drawn) == 1000
    assert min(drawn) >= 500


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_draws_depend_on_seed_epoch_and_position_alone(workers):
    def loaded(start, workers):
        loader = TrainLoader(SeededPictures(Numbers(24), 5), batches(24, 4), num_workers=workers)
        loader.load_state_dict(start)
        return [torch.cat([pictures for pictures, _, _ in loader]) for _ in range(2)]

    first, second = loaded({"epoch": 0, "given": 0}, 0)
    assert not torch.equal(first, second)
    again = loaded({"epoch": 0, "given": 0}, workers)
    assert torch.equal(torch.cat(again), torch.cat((first, second)))
    on, _ = loaded({"epoch": 1, "given": 2}, workers)
    assert torch.equal(on, second[8:])
    begun, _ = loaded({"epoch": 0, "given": 6}, workers)  # the end of an epoch is the start of the next
    assert torch.equal(begun, second)


def test_a_loader_counts_what_it_gave():
    loader = TrainLoader(SeededPictures(Numbers(12), 0), batches(12, 4), num_workers=2)
    given = iter(loader)
    next(given)
    next(given)
    assert loader.state_dict() == {"epoch": 0, "given": 2}
    assert len(loader) == 3


def test_the_transform_of_the_epoch_holds():
    pictures = SeededPictures(Numbers(4), 0, [(0, lambda _: 192), (3, lambda _: 224)])
    sizes = [int(pictures[Draw(epoch, 0, 0)][0][1]) for epoch in (0, 2, 3, 7, 1)]
    assert sizes == [192, 192, 224, 224, 192]


def test_another_picture_takes_the_place_of_one_that_cannot_be_read():
    pictures = SeededPictures(Numbers(5, broken={3, 4}), 0)
    picture, label, faults = pictures[Draw(0, 0, 3)]
    assert (int(picture[0]), label) == (0, 0)
    assert faults == ["3.png: is damaged", "4.png: is damaged"]
    with pytest.raises(InputError, match=r"3\.png"):
        SeededPictures(Numbers(5, broken={3}), 0, strict=True)[Draw(0, 0, 3)]
    with pytest.raises(InputError, match="no picture of the data set can be read"):
        SeededPictures(Numbers(2, broken={0, 1}), 0)[Draw(0, 0, 0)]


def test_what_cannot_be_shared_out_is_said():
    with pytest.raises(InputError, match="must be even"):
        batches(30, 3, accumulate=2)
    with pytest.raises(InputError, match="30 training pictures make no global batch of 32"):
        batches(30, 8, world=4)
    assert [len(batch) for batch in batches(5, 8)] == [5]  # a lone process takes what there is


def test_what_fills_up_is_marked():
    loaded = [list(eval_loader(Numbers(5), 2, world=2, rank=rank)) for rank in range(2)]
    assert [indices for _, _, indices in loaded[0]] == [[0, 1], [4]]
    assert [indices for _, _, indices in loaded[1]] == [[2, 3], [NOT_COUNTED] * 2]
