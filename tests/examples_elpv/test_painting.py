"""Painted defects are where their masks are, and darken nothing else."""

import hashlib

import numpy as np
import torch
from painting import DEFECTS, Paint, RepeatedCells, paint, symmetry
from PIL import Image

MEAN, STD = 0.6, 0.2


def test_the_same_seed_paints_the_same_as_ever():
    """The digest was computed when the published accuracies were."""
    rng, digest = np.random.default_rng(0), hashlib.sha256()
    for _ in range(60):
        factor, masks = paint(96, rng)
        digest.update(np.round(255 * factor).astype(np.uint8).tobytes() + masks.tobytes())
    assert digest.hexdigest() == "4bf50164b60bda12e21d85d0716dacd1ada500e374fcc0f83fa405bd7abb0900"


def test_masked_pixels_are_darkened_all_defects_occur_and_some_cells_stay_clean():
    rng = np.random.default_rng(1)
    painted = [paint(int(rng.integers(32, 130)), rng) for _ in range(300)]
    for factor, masks in painted:
        assert factor.dtype == np.float32
        assert masks.shape == (len(DEFECTS), *factor.shape)
        assert 0 < factor.min() <= factor.max() <= 1
        assert (factor[masks[0]] < 1).all()
    shares = [(factor[masks[1:].any(0)] < 1).mean() for factor, masks in painted if masks[1:].any()]
    assert np.mean(shares) > 0.95  # the stripes of a region may leave pixels as they are
    assert (np.mean([masks.any((1, 2)) for _, masks in painted], axis=0) > 0.1).all()
    assert 0.22 < np.mean([(factor == 1).all() for factor, _ in painted]) < 0.38


def test_the_eight_symmetries_differ():
    image = torch.arange(9.0).view(1, 3, 3)
    views = [symmetry(image, number) for number in range(8)]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert all(torch.equal(symmetry(views[number], (4 - number) % 4), image) for number in range(4))
    assert torch.equal(symmetry(views[4], 4), image)


def to_tensor(image):
    return (torch.from_numpy(np.array(image)).float()[None] / 255 - MEAN) / STD


def test_masks_are_transformed_with_their_images():
    cells = RepeatedCells([(Image.new("L", (48, 48), 204), 0)] * 3, 60)
    transform = Paint(to_tensor, MEAN, STD, seed=1)
    assert len(cells) == 60
    for index in range(60):
        image, masks = transform(*cells[index])
        brightness = image[0] * STD + MEAN
        assert image.shape == (1, 48, 48)
        assert masks.shape == (len(DEFECTS), 48, 48)
        assert brightness.max() <= 0.8 + 1e-6
        assert (brightness[masks[0] > 0] < 0.8 - 1e-4).all()
        assert all(torch.equal(a, b) for a, b in zip(transform(*cells[index]), (image, masks), strict=True))


def test_without_a_seed_numpys_generator_draws_the_defects():
    image, transform = Image.new("L", (32, 32), 204), Paint(to_tensor, MEAN, STD)

    def drawn():
        np.random.seed(0)
        return [transform(image, 0)[0] for _ in range(9)]

    first = drawn()
    assert not all(torch.equal(first[0], other) for other in first)
    assert all(map(torch.equal, first, drawn()))
