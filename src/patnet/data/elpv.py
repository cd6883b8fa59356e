"""ELPV: electroluminescence photographs of solar cells, the built-in real data set.

2 624 photographs of 300x300 px from 44 modules, with a defect probability each, from the package `elpv-dataset`
(Deitsch et al., Solar Energy 185, 2019; CC BY-NC-SA 4.0). The split into 1 968 training and 656 test cells is
fixed in `elpv_test.txt`, stratified by label and module type.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import write_bytes
from .painting import KINDS, PaintedCells
from .splits import DataSplits, PictureFiles, stratified_split

__all__ = ["Cell", "CellCache", "cells", "load_elpv", "load_painted"]

# Brightness of the training cells, in [0, 1].
MEAN, STD = 0.599, 0.161

# Cells with painted defects in an epoch, and of those to validate with.
PAINTED, PAINTED_VAL = 10_000, 512

TWO_CLASSES = ["functional", "defective"]
FOUR_LEVELS = ["defect 0", "defect 1/3", "defect 2/3", "defect 1"]


@dataclass(frozen=True)
class Cell:
    """A cell of the data set: its photograph, the probability of a defect, and its module's type."""

    path: Path
    probability: float
    module: str
    test: bool

    @property
    def level(self) -> int:
        """The probability in thirds, 0 to 3."""
        return round(3 * self.probability)


def cells() -> list[Cell]:
    """The cells in the data set's order.

    Raises:
        InputError: If `elpv-dataset` is not installed.
    """
    if find_spec("elpv_dataset") is None:
        raise InputError("data set elpv: the package elpv-dataset is not installed; pip install 'patnet[elpv]'")
    root = Path(str(files("elpv_dataset"))) / "data"
    test = set((files("patnet.data") / "elpv_test.txt").read_text(encoding="utf-8").split())
    rows = [line.split() for line in (root / "labels.csv").read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Cell(root / path, float(prob), module, Path(path).name in test) for path, prob, module in rows]


class CellCache(PictureFiles):
    """Cells reduced once to a smaller size and kept in one file."""

    def __init__(
        self, samples: Sequence[tuple[Path, int]], mode: str, pixels: np.ndarray, transform: Callable | None = None
    ) -> None:
        super().__init__(samples, mode, transform)
        self.pixels = pixels

    def picture(self, index: int) -> Image.Image:
        """The cell at the size of the cache."""
        return Image.fromarray(self.pixels[index]).convert(self.mode)


def _cached_pixels(all_cells: list[Cell], size: int, directory: Path) -> np.ndarray:
    """Grey cells `(cells, size, size)` as bytes, from a compressed file that is made on first use."""
    file = directory / f"elpv-{size}.npz"
    try:
        if not file.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            resized = [
                np.asarray(
                    PictureFiles([(cell.path, 0)], "L").picture(0).resize((size, size), Image.Resampling.BICUBIC)
                )
                for cell in all_cells
            ]
            buffer = io.BytesIO()
            np.savez_compressed(buffer, pixels=np.stack(resized))
            write_bytes(file, buffer.getvalue())
        with np.load(file) as saved:
            pixels = saved["pixels"]
    except OSError as error:
        raise InputError(f"{file}: the cache cannot be written or read ({error.strerror or error})") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: the cache is damaged; remove it") from error
    if pixels.shape != (len(all_cells), size, size):
        raise InputError(f"{file}: the cache holds {pixels.shape}, not {len(all_cells)} cells; remove it")
    return pixels


def _reader(
    all_cells: list[Cell], mode: str, cache_size: int | None, cache_dir: Path | None
) -> Callable[[Sequence[int], Sequence[int]], PictureFiles]:
    """What makes a data set of some of the cells, by their indices and with a label each."""
    pixels = _cached_pixels(all_cells, cache_size, cache_dir or Path()) if cache_size else None

    def pictures(indices: Sequence[int], labels: Sequence[int]) -> PictureFiles:
        samples = [(all_cells[i].path, label) for i, label in zip(indices, labels, strict=True)]
        return PictureFiles(samples, mode) if pixels is None else CellCache(samples, mode, pixels[indices])

    return pictures


def load_elpv(
    *,
    mode: str = "RGB",
    levels: bool = False,
    val_fraction: float = 0.1,
    seed: int = 0,
    cache_size: int | None = None,
    cache_dir: Path | None = None,
) -> DataSplits:
    """ELPV with its fixed test split, and a seeded share of the training cells for validation.

    Args:
        mode: `"RGB"` or `"L"`; the photographs are grey.
        levels: Four classes, the levels of the defect probability, in place of two.
        val_fraction: Share of the training cells to choose the best epoch with, in [0, 1).
        seed: Of that choice.
        cache_size: Side in px to which the cells are reduced once; None reads the photographs themselves.
        cache_dir: Where that is kept.

    Raises:
        InputError: If `elpv-dataset` is not installed, or the cache cannot be used.
    """
    all_cells = cells()
    labels = [cell.level if levels else int(cell.probability >= 0.5) for cell in all_cells]
    reader = _reader(all_cells, mode, cache_size, cache_dir)

    def pictures(indices: list[int]) -> PictureFiles:
        return reader(indices, [labels[i] for i in indices])

    trained = [i for i, cell in enumerate(all_cells) if not cell.test]
    strata = [(all_cells[i].level, all_cells[i].module) for i in trained]
    learn, choose = stratified_split(strata, val_fraction, seed)
    return DataSplits(
        class_names=list(FOUR_LEVELS if levels else TWO_CLASSES),
        train=pictures([trained[i] for i in learn]),
        val=pictures([trained[i] for i in choose]) if choose else None,
        test=pictures([i for i, cell in enumerate(all_cells) if cell.test]),
        mean=MEAN,
        std=STD,
    )


def load_painted(
    *,
    mode: str = "RGB",
    val_fraction: float = 0.1,
    seed: int = 0,
    cache_size: int | None = None,
    cache_dir: Path | None = None,
) -> DataSplits:
    """ELPV's training cells that are functional for certain, with defects painted on them; test cells take no part.

    Args:
        mode: `"RGB"` or `"L"`; the photographs are grey.
        val_fraction: Share of the cells on which the defects to validate with are painted, in [0, 1).
        seed: Of that choice, and of those defects.
        cache_size: Side in px to which the cells are reduced once; None reads the photographs themselves.
        cache_dir: Where that is kept.

    Raises:
        InputError: If `elpv-dataset` is not installed, or the cache cannot be used.
    """
    all_cells = cells()
    pictures = _reader(all_cells, mode, cache_size, cache_dir)
    functional = [i for i, cell in enumerate(all_cells) if not cell.test and cell.probability == 0]
    learn, choose = stratified_split([all_cells[i].module for i in functional], val_fraction, seed)

    def painted(chosen: list[int], count: int, seed: int | None) -> PaintedCells:
        cells_to_paint = pictures([functional[k] for k in chosen], [0] * len(chosen))
        return PaintedCells(cells_to_paint, count, MEAN, STD, seed=seed)

    return DataSplits(
        class_names=list(KINDS),
        train=painted(learn, PAINTED, None),
        val=painted(choose, PAINTED_VAL, seed) if choose else None,
        mean=MEAN,
        std=STD,
        masks=True,
    )
