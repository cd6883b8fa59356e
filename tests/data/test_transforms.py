import numpy as np
import torch
from PIL import Image

from patnet.data import eval_transform, train_transform

CONFIG = {
    "input_size": (1, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5,),
    "std": (0.25,),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def test_evaluation_normalises():
    grey = eval_transform(CONFIG)(Image.new("RGB", (50, 40), (128, 128, 128)))
    assert grey.shape == (1, 32, 32)
    assert torch.allclose(grey, torch.full_like(grey, (128 / 255 - 0.5) / 0.25), atol=1e-6)
    rgb = eval_transform({**CONFIG, "input_size": (3, 32, 48), "mean": (0.5,) * 3, "std": (0.25,) * 3})
    assert rgb(Image.new("L", (60, 60))).shape == (3, 32, 48)


def test_the_eight_symmetries_occur_and_nothing_else():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    augment = train_transform(CONFIG, scale=(1, 1), vflip=0.5, rot90=0.5, color_jitter=0)
    plain = eval_transform(CONFIG)(image)
    symmetries = {torch.rot90(t, k, (1, 2)).numpy().tobytes() for t in (plain, plain.flip(2)) for k in range(4)}
    assert {augment(image).numpy().tobytes() for _ in range(150)} == symmetries


def test_turned_images_of_any_shape_have_no_black_corners():
    augment = train_transform(CONFIG, scale=(1, 1), hflip=0, rot90=1, color_jitter=0)
    found = augment(Image.fromarray(np.tile(np.arange(100, 140, dtype=np.uint8), (60, 1))))  # brighter to the right
    assert found.min() > (99 / 255 - 0.5) / 0.25
    assert torch.allclose(found[:, :, 0], found[:, :, -1])
    assert (found[0, :-1] > found[0, 1:]).all()
