"""Fashion-MNIST: 28x28 grey images of clothes in ten classes, 60 000 for training and 10 000 for the test.

Xiao et al., 2017 (arXiv 1708.07747), MIT licence. The four IDX files are read from `--data-root`, from the folder of
the Debian package `dataset-fashion-mnist`, or from where torchvision downloads them.
"""

import contextlib
import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

from ..errors import InputError, one_line
from .images import AboutData, DataSplits, ImageFiles, split_off

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    f"{part}-{kind}-idx{len(shape)}-ubyte": shape
    for part, count in (("train", 60_000), ("t10k", 10_000))
    for kind, shape in (("images", (count, 28, 28)), ("labels", (count,)))
}
CLASSES = [
    "T-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
]  # fmt: skip
# Brightness of the training images, in [0, 1].
MEAN, STD = 0.286, 0.353


def _folder(data_root: str | None, cache_dir: Path) -> Path:
    """The folder of the files; downloads them if there is none."""
    downloaded = cache_dir / "FashionMNIST" / "raw"
    for folder in [Path(data_root)] if data_root else [DEBIAN, downloaded]:
        if all(_find(folder, name) for name in FILES):
            return folder
    missing = next(name for name in FILES if not _find(Path(data_root or DEBIAN), name))
    hint = "install the Debian package dataset-fashion-mnist, or give --data-root, a folder with the four IDX files"
    if data_root:
        raise InputError(f"{data_root}: has no {missing} or {missing}.gz; {hint}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            FashionMNIST(str(cache_dir), download=True)
    except Exception as error:  # of the network, the disk, and damaged archives
        raise InputError(f"data set fashion-mnist: cannot be downloaded ({one_line(error)}); {hint}") from error
    return downloaded


def _find(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _read(folder: Path, name: str) -> np.ndarray:
    """The array of an IDX file: two zero bytes, the type 8 (bytes), the number of dimensions, and their lengths."""
    file, shape = _find(folder, name), FILES[name]
    assert file is not None
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: is cut short or damaged ({error}); get it again") from error
    start = 4 + 4 * len(shape)
    header = np.frombuffer(content[:start].ljust(start, b"\0"), ">i4")
    if header[0] != 0x800 + len(shape) or tuple(header[1:]) != shape:
        found = "x".join(map(str, header[1:])) if header[0] == 0x800 + len(shape) else "no IDX file of bytes"
        raise InputError(f"{file}: holds {found}, not {'x'.join(map(str, shape))} of Fashion-MNIST")
    if len(content) != start + math.prod(shape):
        raise InputError(f"{file}: is cut short: {len(content)} of {start + math.prod(shape)} bytes; get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def load_fashion_mnist(
    *,
    mode: str = "RGB",
    val_fraction: float = 0.1,
    seed: int = 0,
    cache_size: int | None = None,
    cache_dir: Path | None = None,
    data_root: str | None = None,
) -> DataSplits:
    """Fashion-MNIST, with a seeded share of its training images for validation.

    Args:
        mode: `"RGB"` or `"L"`; the images are grey.
        val_fraction: Share of the training images to validate with, stratified by class.
        seed: Random seed of that split.
        cache_size: Not used, because all images are in memory.
        cache_dir: Folder to download to.
        data_root: Folder of the four IDX files, compressed or not.

    Raises:
        InputError: If the files are missing and cannot be downloaded, cut short, or of another shape.
    """
    folder = _folder(data_root, cache_dir or Path())
    parts = []
    for part in ("train", "t10k"):
        pixels = _read(folder, f"{part}-images-idx3-ubyte")
        paths = [Path(f"{part}-images") / str(i) for i in range(len(pixels))]
        samples = list(zip(paths, _read(folder, f"{part}-labels-idx1-ubyte").tolist(), strict=True))
        parts.append(ImageFiles(samples, mode, dict(zip(paths, pixels, strict=True))))
    train, val = split_off(parts[0], parts[0].labels, val_fraction, seed)
    return DataSplits(list(CLASSES), train, val, parts[1], MEAN, STD)


ABOUT = AboutData(
    title="Fashion-MNIST",
    text="70 000 grey images of clothes, 28x28 px, in ten classes: 60 000 for training and 10 000 for the test.",
    licence="mit",
    limits="The images are product photographs of one shop, scaled to 28x28 px and centred.",
    citation="""@article{xiao2017fashion,
  title = {Fashion-{MNIST}: a novel image dataset for benchmarking machine learning algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv:1708.07747},
  year = {2017}
}""",
)
