"""ELPV: electroluminescence images of solar cells, the built-in real data set.

2 624 images of 300x300 px from 44 modules, with a defect probability each, from the package `elpv-dataset`
(Deitsch et al., Solar Energy 185, 2019; CC BY-NC-SA 4.0). The split into 1 968 training and 656 test cells is
fixed in `elpv_test.txt`, stratified by label and module type.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError, require
from ..files import atomic_write
from .images import AboutData, DataSplits, ImageFiles, read_image, split_off

# Brightness of the training cells, in [0, 1].
MEAN, STD = 0.599, 0.161

TWO_CLASSES = ["functional", "defective"]
FOUR_LEVELS = ["defect 0", "defect 1/3", "defect 2/3", "defect 1"]


@dataclass(frozen=True)
class SolarCell:
    """A solar cell of the data set: its image, the probability of a defect, its module's type, and its split."""

    path: Path
    probability: float
    module: str
    test: bool

    @property
    def level(self) -> int:
        """The probability in thirds, 0 to 3."""
        return round(3 * self.probability)

    @property
    def doubtful(self) -> bool:
        """Whether the experts' label is between functional and defective, 1/3 or 2/3."""
        return self.level in (1, 2)


def solar_cells() -> list[SolarCell]:
    """The solar cells in the data set's order.

    Raises:
        InputError: If `elpv-dataset` is not installed.
    """
    require(["elpv_dataset"], "elpv", "data set elpv")
    root = Path(str(files("elpv_dataset"))) / "data"
    test = set((files("patnet.data") / "elpv_test.txt").read_text(encoding="utf-8").split())
    rows = [line.split() for line in (root / "labels.csv").read_text(encoding="utf-8").splitlines() if line.strip()]
    return [SolarCell(root / path, float(prob), module, Path(path).name in test) for path, prob, module in rows]


def _cached_pixels(cells: list[SolarCell], size: int, directory: Path) -> np.ndarray:
    """Grey images `(cells, size, size)` as bytes, from a compressed file that is written on first use."""
    file = directory / f"elpv-{size}.npz"
    if not file.is_file():
        images = (read_image(cell.path, "L").resize((size, size), Image.Resampling.BICUBIC) for cell in cells)
        pixels = np.stack([np.asarray(image) for image in images])
        with atomic_write(file, "choose another --cache-dir") as temporary:
            np.savez_compressed(temporary, pixels=pixels)
    try:
        with np.load(file) as saved:
            pixels = saved["pixels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: the cache is damaged ({type(error).__name__}); remove it") from error
    if pixels.shape != (len(cells), size, size):
        raise InputError(f"{file}: the cache holds {pixels.shape}, not {len(cells)} solar cells; remove it")
    return pixels


def cell_images(labels: Sequence[int], mode: str, cache_size: int | None, cache_dir: Path | None) -> ImageFiles:
    """The images of all solar cells, in the data set's order; the arguments are those of `load_elpv`."""
    cells = solar_cells()
    samples = [(cell.path, label) for cell, label in zip(cells, labels, strict=True)]
    pixels = _cached_pixels(cells, cache_size, cache_dir or Path()) if cache_size else None
    cached = None if pixels is None else {cell.path: image for cell, image in zip(cells, pixels, strict=True)}
    return ImageFiles(samples, mode, cached)


def load_elpv(
    *,
    mode: str = "RGB",
    levels: bool = False,
    val_fraction: float = 0.1,
    seed: int = 0,
    cache_size: int | None = None,
    cache_dir: Path | None = None,
    data_root: str | None = None,
) -> DataSplits:
    """ELPV with its fixed test split, and a seeded share of the training cells for validation.

    Args:
        mode: `"RGB"` or `"L"`; the images are grey.
        levels: Four classes, the levels of the defect probability, instead of two.
        val_fraction: Share of the training cells to validate with, stratified by level and module type.
        seed: Random seed of that split.
        cache_size: Side in px to which images are downsampled once; None reads the files.
        cache_dir: Folder of the cache.
        data_root: None, because the images come with their package.

    Raises:
        InputError: If `elpv-dataset` is not installed, the cache cannot be used, or a `data_root` is given.
    """
    if data_root:
        raise InputError(f"--data-root {data_root}: the images of elpv come with their package; leave it out")
    cells = solar_cells()
    labels = [cell.level if levels else int(cell.probability >= 0.5) for cell in cells]
    images = cell_images(labels, mode, cache_size, cache_dir)
    training = [i for i, cell in enumerate(cells) if not cell.test]
    strata = [(cells[i].level, cells[i].module) for i in training]
    train, val = split_off(images.subset(training), strata, val_fraction, seed)
    test = images.subset([i for i, cell in enumerate(cells) if cell.test])
    return DataSplits(list(FOUR_LEVELS if levels else TWO_CLASSES), train, val, test, MEAN, STD)


ABOUT = AboutData(
    title="ELPV",
    text="2 624 electroluminescence images of solar cells from 44 modules, 300x300 px, 8-bit grey, from the package "
    "elpv-dataset. 1 968 solar cells are for training and 656 for the test, in a split that is fixed in patnet. "
    "Nothing records which module a solar cell came from, so solar cells of one module may be in both parts.",
    licence="cc-by-nc-sa-4.0",
    limits="The labels are probabilities of a defect that experts gave in thirds; 401 of the 2 624 solar cells (15 %) "
    "are doubtful, 1/3 or 2/3. Images by other cameras, of other types of modules or of complete modules are not in "
    "the training data. The output is no inspection of a module, and should not be the only basis for a decision.",
    citation="""@article{deitsch2019automatic,
  title = {Automatic classification of defective photovoltaic module cells in electroluminescence images},
  author = {Deitsch, Sergiu and Christlein, Vincent and Berger, Stephan and Buerhop-Lutz, Claudia and Maier, Andreas
            and Gallwitz, Florian and Riess, Christian},
  journal = {Solar Energy},
  volume = {185},
  pages = {455--468},
  year = {2019}
}""",
)
