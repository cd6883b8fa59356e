"""How fast training pictures are loaded on one core, beside plain torchvision."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from timm.data import resolve_data_config
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ..data import PictureFiles, train_transform
from ..data.loading import Draw, SeededPictures

__all__ = ["measure_loading"]


def _photograph(width: int, height: int) -> bytes:
    """A JPEG of a real photograph, matplotlib's own sample, at that size."""
    file: Any = get_sample_data("grace_hopper.jpg", asfileobj=False)
    content = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").crop((0, 0, 512, 384)).resize((width, height)).save(content, "JPEG", quality=90)
    return content.getvalue()


def _sides(root: Path, size: int) -> dict[str, Callable[[int], Any]]:
    """What loads a picture by its index: ours with the recipe's augmentation and with none but crop and flip."""
    files = sorted(root.rglob("*.jpg"))
    config = resolve_data_config({"input_size": (3, size, size)}, pretrained_cfg={})

    def ours(auto_augment: str | None) -> Callable[[int], Any]:
        transform = train_transform(config, min_area=0.08, color_jitter=0.0, auto_augment=auto_augment)
        pictures = SeededPictures(PictureFiles([(file, 0) for file in files], "RGB"), 0, [(0, transform)])
        return lambda index: pictures[Draw(0, index, index)]

    plain = ImageFolder(
        str(root),
        v2.Compose(
            [
                v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(config["mean"], config["std"]),
            ]
        ),
    )
    return {
        "patnet, crop and flip": ours(None),
        "torchvision, crop and flip": lambda index: plain[index],
        "patnet, with RandAugment m7": ours("rand-m7-mstd0.5-inc1"),
    }


def measure_loading(
    *, width: int = 500, height: int = 375, size: int = 224, pictures: int = 32, rounds: int = 15
) -> dict[str, float]:
    """Images/s of one process, the median of rounds taken in turns.

    Args:
        width: Of the JPEG files, px; ImageNet's are 500x375 on the average.
        height: Likewise.
        size: Of the pictures that come out, px.
        pictures: In a round.
        rounds: How many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "photographs").mkdir()
            content = _photograph(width, height)
            for number in range(pictures):
                (root / "photographs" / f"{number:03d}.jpg").write_bytes(content)
            sides = _sides(root, size)
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds + 1):
                for name, load in sides.items():
                    start = time.perf_counter()
                    for index in range(pictures):
                        load(index)
                    seconds[name].append(time.perf_counter() - start)
        return {name: pictures / statistics.median(laps[1:]) for name, laps in seconds.items()}
    finally:
        torch.set_num_threads(threads)
