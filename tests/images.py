"""Images whose classes can be learned by their brightness."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, **counts: int) -> Path:
    """Write `counts` images of 40x36 px into each named folder of `root`; classes differ in brightness."""
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True)
        level = 40 + 150 * (ord(name[-1]) % 2)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 40, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(level + noise).save(folder / f"{i:02d}.png")
    return root
