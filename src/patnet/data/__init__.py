"""Data sets by name, by folder, and through timm; reading pictures; preprocessing."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from timm.data import create_dataset

from ..errors import InputError, nearest
from .about import ABOUT, AboutData
from .detection import DetectionPictures, open_annotations
from .elpv import load_elpv, load_painted
from .folder import load_folder
from .images import IMAGE_SUFFIXES, as_seen, read_image, walk_pictures
from .splits import DataSplits, PictureFiles, stratified_split
from .transforms import eval_transform, train_transform

__all__ = [
    "ABOUT",
    "DATA_SETS",
    "IMAGE_SUFFIXES",
    "AboutData",
    "DataSplits",
    "DetectionPictures",
    "PictureFiles",
    "as_seen",
    "default_cache_dir",
    "eval_transform",
    "is_timms",
    "open_annotations",
    "open_data",
    "open_split",
    "read_image",
    "stratified_split",
    "train_transform",
    "walk_pictures",
]


# Built-in data sets by name; an entry takes mode, val_fraction, seed, cache_size and cache_dir.
DATA_SETS: dict[str, Callable[..., DataSplits]] = {
    "elpv": load_elpv,
    "elpv-levels": partial(load_elpv, levels=True),
    "elpv-painted": load_painted,
}

# The prefixes that timm's create_dataset knows, as in torch/cifar10.
TIMM_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


def default_cache_dir() -> Path:
    """Where reduced copies of data sets are kept, `patnet` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patnet"


# The packages that its readers take, of the extra `data`.
READERS = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset"}


def is_timms(data: str) -> bool:
    """Whether a name is that of a data set that timm reads, as `torch/cifar10` is, and not a folder's."""
    prefix, slash, _ = data.partition("/")
    return bool(slash) and prefix.lower() in TIMM_PREFIXES and not Path(data).is_dir()


def _open_timm(name: str, root: str | None, split: str, mode: str, seed: int, *, training: bool = False) -> Any:
    """A split of a data set that timm's `create_dataset` reads.

    Raises:
        InputError: If it cannot be opened, or its reader is not installed.
    """
    package = READERS.get(name.partition("/")[0].lower())
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"data set {name!r}: needs {package}, not installed here: pip install 'patnet[data]'")
    options: dict[str, Any] = {}
    wanted = split
    if package == "datasets" and "|" in split:  # the number of pictures, as timm takes it for wds
        wanted, _, number = split.partition("|")
        if not number.isdigit():
            raise InputError(f"data set {name!r}: split {split!r} gives no number of pictures after the bar")
        if name.lower().startswith("hfids"):
            options["num_samples"] = int(number)
    try:
        dataset = create_dataset(
            name,
            root=root,
            split=wanted,
            is_training=training,
            search_split=False,
            seed=seed,
            input_img_mode=mode,
            **options,
        )
    except Exception as error:  # each of timm's readers raises its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "; give it after the split, as in 'train|50000'" if "num_samples" in first else ""
        raise InputError(
            f"data set {name!r}: timm cannot open it with --data_root {root} and split {split!r} ({first}){hint}"
        ) from error
    if package == "webdataset":  # which passes over what it cannot open
        for shard in dataset.reader.split_info.filenames:
            file = Path(root or "", shard)
            if "::" not in shard and ":" not in str(file) and not file.is_file():
                raise InputError(
                    f"data set {name!r}: split {split!r} has no shard {file}; copy it there, or leave it out"
                )
    return dataset


def _from_timm(
    name: str, root: str | None, mode: str, train_split: str, val_split: str, num_classes: int | None, seed: int
) -> DataSplits:
    """A data set that timm's `create_dataset` reads."""
    train = _open_timm(name, root, train_split, mode, seed, training=True)
    val = _open_timm(name, root, val_split, mode, seed)
    reader = getattr(train, "reader", train)
    class_to_idx = getattr(reader, "class_to_idx", None)
    names = sorted(class_to_idx, key=class_to_idx.get) if class_to_idx else list(getattr(train, "classes", []))
    if not names:
        if not num_classes:
            raise InputError(f"data set {name!r}: does not say how many classes it has; give --num_classes")
        names = [str(i) for i in range(num_classes)]
    return DataSplits([str(n) for n in names], train, val)


def open_data(
    data: str,
    *,
    in_chans: int = 3,
    data_root: str | None = None,
    train_split: str = "train",
    val_split: str = "validation",
    val_fraction: float = 0.1,
    num_classes: int | None = None,
    cache_size: int | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
) -> DataSplits:
    """Open a data set: a name in `DATA_SETS`, a folder of class folders, or what timm's `create_dataset` takes.

    Args:
        data: For example `elpv`, `photos/`, or `torch/cifar10`.
        in_chans: 1 for grey pictures, 3 for colour.
        data_root: Where timm finds or keeps the data.
        train_split: Name of the training split in a data set of timm's.
        val_split: Name of the validation split there.
        val_fraction: Share of the training pictures kept for validation, where the data set has no such split.
        num_classes: Where a data set of timm's does not say it.
        cache_size: Side in px of the reduced copy of a built-in data set; None for none.
        cache_dir: Where that is kept, by default `default_cache_dir()`.
        seed: Of the validation split.

    Raises:
        InputError: If there is no such data set, or it cannot be used.
    """
    if in_chans not in (1, 3):
        raise InputError(f"--in_chans {in_chans}: pictures are read as grey (1) or colour (3)")
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val_fraction {val_fraction}: must lie in [0, 1)")
    mode = "L" if in_chans == 1 else "RGB"
    if data in DATA_SETS:
        return DATA_SETS[data](
            mode=mode,
            val_fraction=val_fraction,
            seed=seed,
            cache_size=cache_size,
            cache_dir=cache_dir or default_cache_dir(),
        )
    if cache_size:
        raise InputError(f"--cache_size: only built-in data sets are cached ({', '.join(DATA_SETS)}), not {data!r}")
    if is_timms(data):
        return _from_timm(data, data_root, mode, train_split, val_split, num_classes, seed)
    if not Path(data).exists() and os.sep not in data:
        raise InputError(
            f"data set {data!r}: neither built in{nearest(data, DATA_SETS)} nor a folder here; "
            f"built in are {', '.join(DATA_SETS)}"
        )
    return load_folder(Path(data), mode=mode, val_fraction=val_fraction, seed=seed)


def open_split(data: str, split: str | None = None, *, in_chans: int = 3, data_root: str | None = None) -> Any:
    """The pictures of one split of a data set, to predict on.

    Args:
        data: As for `open_data`.
        split: `train`, `val` or `test`, or what timm's reader calls it; by default test where there is one, then val.
        in_chans: 1 for grey pictures, 3 for colour.
        data_root: Where timm finds or keeps the data.

    Raises:
        InputError: If there is no such data set or split, or it cannot be used.
    """
    if is_timms(data):
        return _open_timm(data, data_root, split or "validation", "L" if in_chans == 1 else "RGB", 0)
    splits = open_data(data, in_chans=in_chans)
    parts = {name: getattr(splits, name) for name in ("test", "val", "train") if getattr(splits, name) is not None}
    if split is None:
        return next(iter(parts.values()))
    if split not in parts:
        raise InputError(f"--split {split}: data set {data!r} has {', '.join(parts)}; choose one of them")
    return parts[split]
