"""Measure how fast one CPU core loads training images, with patnet's transforms and with plain torchvision."""

import io
import json as jsonlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from timm.data import resolve_data_config
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from patnet.bench import Timing, describe_machine, interleave, machine, use_threads
from patnet.cli import main
from patnet.data import ImageFiles, train_transform
from patnet.data.loading import Draw, SeededDataset
from patnet.train.config import PositiveInt

NAME = "benchmarks/data_loading.py"
SUMMARY = __doc__
EXAMPLES = """Examples:
  python benchmarks/data_loading.py
  python benchmarks/data_loading.py --size 1024 768 --img-size 96"""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib"))


def run(
    *,
    size: tuple[PositiveInt, PositiveInt] = (500, 375),
    img_size: PositiveInt = 224,
    images: PositiveInt = 32,
    rounds: PositiveInt = 15,
    json: bool = False,
) -> int:
    """Measure, and print images/s.

    Args:
        size: Width and height of the JPEG files in px; those of ImageNet are 500x375 on average.
        img_size: Side of the training images in px.
        images: Images in a round.
        rounds: Number of rounds.
        json: Print JSON.
    """
    with use_threads(1), tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", size, images)
        loads = {name: partial(load_all, load, images) for name, load in loaders(Path(folder), img_size).items()}
        timings = {name: Timing() for name in loads}
        interleave([*loads.values()], [*timings.values()], seconds=0, min_rounds=rounds, max_rounds=rounds)
    rates = {name: images / timing.median for name, timing in timings.items()}
    if json:
        print(jsonlib.dumps(rates, indent=2))
        return 0
    for name, rate in rates.items():
        print(f"{name:<30}{rate:6.0f} images/s")
    print(f"JPEG of {size[0]}x{size[1]} px to {img_size} px, median of {rounds} rounds, {describe_machine(machine())}")
    return 0


def write_images(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write copies of a real image, matplotlib's sample, as JPEG files of a width and height."""
    content = io.BytesIO()
    file: Any = get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(file) as image:
        image.convert("RGB").crop((0, 0, 512, 384)).resize(size).save(content, "JPEG", quality=90)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(content.getvalue())


def loaders(root: Path, img_size: int) -> dict[str, Callable[[int], Any]]:
    """What loads a training image by its index."""
    files = sorted(root.rglob("*.jpg"))
    config = resolve_data_config({"input_size": (3, img_size, img_size)}, pretrained_cfg={})

    def patnet(aa: str | None) -> Callable[[int], Any]:
        transform = train_transform(config, scale=(0.08, 1.0), color_jitter=0.0, aa=aa)
        dataset = SeededDataset(ImageFiles([(file, 0) for file in files]), 0, [(0, transform)])
        return lambda index: dataset[[Draw(0, index, index)]]

    steps = [
        v2.RandomResizedCrop(img_size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(config["mean"], config["std"]),
    ]
    return {
        "patnet, crop and flip": patnet(None),
        "torchvision, crop and flip": ImageFolder(str(root), v2.Compose(steps)).__getitem__,
        "patnet, with RandAugment m7": patnet("rand-m7-mstd0.5-inc1"),
    }


def load_all(load: Callable[[int], Any], count: int) -> None:
    """Load the images from 0 to `count`."""
    for index in range(count):
        load(index)


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
