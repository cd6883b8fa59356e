"""Images whose classes can be learned by their brightness, and a folder of them without rights."""

import os
from pathlib import Path

import numpy as np
import pytest
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


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away the right to list a folder, which root always has."""
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
