"""Painted defects are where their masks say, and darken nothing else."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from patnet.data import open_data
from patnet.data.elpv import cells
from patnet.data.painting import KINDS, PaintedCells, paint, turned

MEAN, STD = 0.6, 0.2


class Even(Dataset):
    """Cells without any structure, so that whatever is dark was painted."""

    samples = ((None, 0),) * 3

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, self.size, self.size), (0.8 - MEAN) / STD), 0


@pytest.mark.parametrize("seed", range(40))
def test_what_is_marked_is_darkened(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(32, 130))
    left, masks = paint(size, rng)
    assert left.shape == (size, size)
    assert masks.shape == (len(KINDS), size, size)
    assert left.dtype == np.float32
    assert 0.02 < left.min() <= left.max() <= 1
    if not masks.any():
        assert left.mean() > 0.97  # what is too small to be marked is hardly seen
    if masks[0].any():
        assert (left[masks[0]] < 1).all()
    assert (left[masks[1:].any(0)] < 1).mean() > 0.8 if masks[1:].any() else True


def test_the_same_draws_paint_the_same():
    left, masks = zip(*(paint(64, np.random.default_rng(5)) for _ in range(2)), strict=True)
    assert np.array_equal(*left)
    assert np.array_equal(*masks)


def test_all_kinds_are_painted_and_some_cells_left_clean():
    rng = np.random.default_rng(0)
    painted = [paint(64, rng) for _ in range(400)]
    shares = np.mean([masks.any((1, 2)) for _, masks in painted], axis=0)
    assert (shares > 0.1).all()
    clean = np.mean([(left == 1).all() for left, _ in painted])
    assert 0.22 < clean < 0.38


def test_cracks_cut_dark_regions_off():
    """Where a region is painted, a crack often runs along it; more often than from cracks painted elsewhere."""
    rng = np.random.default_rng(1)
    masks = [paint(64, rng)[1] for _ in range(600)]
    regions = [region for _, region, _ in masks if region.any()]
    cracks = [crack for crack, region, _ in masks if crack.any() and not region.any()]

    def along(crack: np.ndarray, region: np.ndarray) -> float:
        rim = region & ~(
            np.roll(region, 1, 0) & np.roll(region, -1, 0) & np.roll(region, 1, 1) & np.roll(region, -1, 1)
        )
        return float(crack[rim].mean())

    own = np.mean([along(crack, region) for crack, region, _ in masks if region.any()])
    others = np.mean([along(crack, region) for crack, region in zip(cracks, regions, strict=False)])
    assert own > 2 * others


def test_the_eight_sides_differ_and_are_undone():
    picture = torch.arange(12.0).view(1, 3, 4)[..., :3]
    sides = [turned(picture, side) for side in range(8)]
    assert len({tuple(side.flatten().tolist()) for side in sides}) == 8
    for side in range(4):
        assert torch.equal(turned(turned(picture, side), (4 - side) % 4), picture)
        assert torch.equal(turned(turned(picture, 4), 4), picture)


def test_masks_turn_with_their_pictures():
    painted = PaintedCells(Even(48), 60, MEAN, STD, seed=1)
    for index in range(60):
        picture, masks = painted[index]
        brightness = picture[0] * STD + MEAN
        assert picture.shape == (1, 48, 48)
        assert masks.shape == (len(KINDS), 48, 48)
        assert brightness.max() <= 0.8 + 1e-6
        assert (brightness[masks[0] > 0] < 0.8 - 1e-4).all()


def test_a_seed_fixes_the_defects_and_none_draws_them():
    fixed = PaintedCells(Even(32), 9, MEAN, STD, seed=3)
    assert all(torch.equal(a, b) for index in range(9) for a, b in zip(fixed[index], fixed[index], strict=True))
    drawn = PaintedCells(Even(32), 9, MEAN, STD)
    np.random.seed(0)
    first = [drawn[index][0] for index in range(9)]
    assert not all(torch.equal(a, drawn[index][0]) for index, a in enumerate(first))
    np.random.seed(0)
    assert all(torch.equal(a, drawn[index][0]) for index, a in enumerate(first))


def test_no_test_cell_and_no_defective_one_is_painted_on():
    splits = open_data("elpv-painted", in_chans=1, val_fraction=0.1)
    assert splits.class_names == KINDS
    assert splits.masks
    assert splits.test is None
    known = {cell.path: cell for cell in cells()}
    used = [{path for path, _ in part.samples} for part in (splits.train, splits.val)]
    assert not used[0] & used[1]
    assert all(known[path].probability == 0 and not known[path].test for path in used[0] | used[1])
    functional = [cell for cell in known.values() if cell.probability == 0 and not cell.test]
    assert len(used[0] | used[1]) == len(functional)
