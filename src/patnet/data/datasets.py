"""Data sets by name, by folder, and through timm."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder

from ..errors import InputError, nearest, require
from . import elpv, fashion_mnist
from .images import (
    IMAGE_SUFFIXES,
    AboutData,
    DataSplits,
    ImageFiles,
    UnreadableImage,
    convert_image,
    find_images,
    read_image,
    split_off,
)

# Built-in data sets by name; an entry takes mode, val_fraction, seed, cache_size, cache_dir and data_root.
DATA_SETS: dict[str, Callable[..., DataSplits]] = {
    "elpv": elpv.load_elpv,
    "elpv-levels": partial(elpv.load_elpv, levels=True),
    "fashion-mnist": fashion_mnist.load_fashion_mnist,
}

# What model cards say of them.
ABOUT: dict[str, AboutData] = {
    **dict.fromkeys(("elpv", "elpv-levels"), elpv.ABOUT),
    "fashion-mnist": fashion_mnist.ABOUT,
}

# The prefixes that timm's create_dataset knows, as in torch/cifar10, and the package that its reader needs.
TIMM_PREFIXES = {"torch": None, "hfds": "datasets", "hfids": "datasets", "tfds": None, "wds": "webdataset"}


def default_cache_dir() -> Path:
    """Where downsampled copies of data sets are kept, `patnet` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patnet"


def is_timm(data: str) -> bool:
    """Whether a name is that of a data set that timm reads, such as `torch/cifar10`, and not that of a folder."""
    prefix, slash, _ = data.partition("/")
    return bool(slash) and prefix.lower() in TIMM_PREFIXES and not Path(data).is_dir()


def _class_folders(root: Path) -> DatasetFolder:
    """The images below `root`, in one folder for each class."""
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir()]
    except OSError as error:
        raise InputError(f"{root}: the folder cannot be read ({error.strerror or error})") from error
    if not folders:
        raise InputError(
            f"{root}: holds no class folders; put the images of each class into a folder of its name (images without "
            "classes serve a distillation alone, patnet train --teacher)"
        )
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    found = DatasetFolder(str(root), read_image, tuple(IMAGE_SUFFIXES), allow_empty=True)
    for name, label in found.class_to_idx.items():
        if label not in found.targets:
            raise InputError(f"{root / name}: the class has no images; add some ({suffixes}) or remove the folder")
    return found


def load_folder(root: Path, *, mode: str = "RGB", val_fraction: float = 0.1, seed: int = 0) -> DataSplits:
    """Images in class folders: in `train/`, `val/` (`valid/`, `validation/`) and perhaps `test/`, or in `root` itself.

    Where there is no validation split, a stratified share of the training images is split off.

    Raises:
        InputError: If a folder is missing or empty, a class has no images, or a split has classes that training lacks.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {problem}; give a folder of class folders")
    names = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
    parts = {part: root / name for part in names for name in names[part] if (root / name).is_dir()}
    if parts and "train" not in parts:
        held_out = next(iter(parts.values()))
        raise InputError(f"{root}: has {held_out.name}/ but no train/; add it, or give the class folders alone")
    trained = _class_folders(parts.pop("train", root))
    splits: dict[str, Any] = {}
    for part, folder in parts.items():
        found = _class_folders(folder)
        for name in found.classes:
            if name not in trained.class_to_idx:
                raise InputError(f"{folder / name}: train/ has no class of this name; add it there or remove it here")
        labels = [trained.class_to_idx[name] for name in found.classes]
        splits[part] = ImageFiles([(Path(path), labels[label]) for path, label in found.samples], mode)
    train = ImageFiles([(Path(path), label) for path, label in trained.samples], mode)
    if "val" not in splits:
        train, splits["val"] = split_off(train, train.labels, val_fraction, seed)
    return DataSplits(trained.classes, train, **splits)


def is_unlabelled(data: str) -> bool:
    """Whether a data set is a folder of images without class folders."""
    folder = Path(data)
    return folder.is_dir() and not any(entry.is_dir() for entry in folder.iterdir())


def load_unlabelled(
    root: Path, class_names: list[str], *, mode: str = "RGB", val_fraction: float = 0.1, seed: int = 0
) -> DataSplits:
    """The images of a folder without classes, all with label 0, for the distillation from a teacher of `class_names`.

    Raises:
        InputError: If the folder holds no images.
    """
    images = ImageFiles([(path, 0) for path in find_images([str(root)])], mode)
    train, val = split_off(images, images.labels, val_fraction, seed)
    return DataSplits(class_names, train, val, labelled=False)


class _HuggingFaceImages(Dataset):
    """A data set on disk that timm's reader opens; unlike `timm.data.ImageDataset`, it never replaces an image."""

    def __init__(self, reader: Any, name: str, mode: str) -> None:
        self.reader, self.name, self.mode = reader, name, mode

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            file, label = self.reader[index]
        except Exception as error:  # whatever the reader raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImage(f"{self.name}[{index}]", reason) from error
        return read_image(file, self.mode, name=f"{self.name}[{index}]"), -1 if label is None else label


def _open_timm(name: str, root: str | None, split: str, mode: str, seed: int, *, training: bool = False) -> Any:
    """A split of a data set that timm's `create_dataset` reads."""
    prefix = name.partition("/")[0].lower()
    package = TIMM_PREFIXES[prefix]
    require([package] if package else [], "data", f"data set {name!r}")
    options: dict[str, Any] = {"split": split, "input_img_mode": mode}
    if prefix in ("wds", "hfids"):  # whose readers would drop transparency
        options |= {"input_img_mode": "", "transform": partial(convert_image, mode=mode)}
    if package == "datasets" and "|" in split:  # the number of images, as timm takes it for wds
        options["split"], _, number = split.partition("|")
        if not number.isdigit():
            raise InputError(f"data set {name!r}: split {split!r} gives no number of images after the bar")
        if prefix == "hfids":
            options["num_samples"] = int(number)
    try:
        dataset = create_dataset(name, root=root, is_training=training, search_split=False, seed=seed, **options)
    except Exception as error:  # each of timm's readers raises its own types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        streamed = prefix == "hfids" and "num_samples" not in options
        hint = "; some streams need the number of images after the split, as in 'train|50000'" if streamed else ""
        raise InputError(
            f"data set {name!r}: timm cannot open it with --data-root {root} and split {split!r} ({reason}){hint}"
        ) from error
    if package == "webdataset":  # which skips shards that it cannot open
        for shard in dataset.reader.split_info.filenames:
            file = Path(root or "", shard)
            if "::" not in shard and ":" not in str(file) and not file.is_file():
                raise InputError(f"data set {name!r}: split {split!r} has no shard {file}; add it, or leave it out")
    return _HuggingFaceImages(dataset.reader, name, mode) if isinstance(dataset, ImageDataset) else dataset


def _class_names(dataset: Any, name: str, num_classes: int | None) -> list[str]:
    class_to_idx = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
    names: Any = getattr(dataset, "classes", None) or []
    if sorted(class_to_idx.values()) == list(range(len(names) or len(class_to_idx))):  # ImageNet's has synonyms too
        names = sorted(class_to_idx, key=lambda name: class_to_idx[name])
    names = names or range(num_classes or 0)
    if not names:
        raise InputError(f"data set {name!r}: does not say how many classes it has; give --num-classes")
    return distinct_names([", ".join(n) if isinstance(n, tuple) else str(n) for n in names])


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names of classes with the class's number where several have one name, as two pairs of ImageNet's classes do."""
    counts = Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]


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
    cache_dir: str | Path | None = None,
    seed: int = 0,
) -> DataSplits:
    """Open a data set: a name in `DATA_SETS`, a folder of class folders, or what timm's `create_dataset` takes.

    Args:
        data: For example `elpv`, `images/`, or `torch/cifar10`.
        in_chans: 1 to read images as grey, 3 as RGB.
        data_root: Folder of a data set that timm reads, or of the files of fashion-mnist.
        train_split: Name of its training split.
        val_split: Name of its validation split.
        val_fraction: Share of the training images for validation, where the data set has no such split.
        num_classes: Number of classes of a data set that timm reads, where it does not say it.
        cache_size: Side in px of the downsampled copy of a built-in data set; None for none.
        cache_dir: Folder of that copy, by default `default_cache_dir()`.
        seed: Random seed of the validation split.

    Raises:
        InputError: If there is no such data set, or it cannot be used.
    """
    if in_chans not in (1, 3):
        raise InputError(f"--in-chans {in_chans}: images are read as grey (1) or RGB (3)")
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val-fraction {val_fraction}: must lie in [0, 1)")
    mode = "L" if in_chans == 1 else "RGB"
    common: dict[str, Any] = {"mode": mode, "val_fraction": val_fraction, "seed": seed}
    if data in DATA_SETS:
        cache = {"cache_size": cache_size, "cache_dir": Path(cache_dir or default_cache_dir())}
        return DATA_SETS[data](**common, **cache, data_root=data_root)
    if cache_size:
        raise InputError(f"--cache-size: only built-in data sets are cached ({', '.join(DATA_SETS)}), not {data!r}")
    if is_timm(data):
        train = _open_timm(data, data_root, train_split, mode, seed, training=True)
        val = _open_timm(data, data_root, val_split, mode, seed)
        return DataSplits(_class_names(train, data, num_classes), train, val)
    if not Path(data).exists() and os.sep not in data:
        raise InputError(
            f"data set {data!r}: neither built in{nearest(data, DATA_SETS)} nor a folder here; "
            f"built in are {', '.join(DATA_SETS)}"
        )
    return load_folder(Path(data), **common)


def open_split(data: str, split: str | None = None, *, in_chans: int = 3, data_root: str | None = None) -> Any:
    """The images of one split of a data set, to predict on.

    Args:
        data: As for `open_data`.
        split: `train`, `val` or `test`, or what timm's reader calls it; by default test where there is one, then val.
        in_chans: 1 to read images as grey, 3 as RGB.
        data_root: Folder of a data set that timm reads.

    Raises:
        InputError: If there is no such data set or split, or it cannot be used.
    """
    if is_timm(data):
        return _open_timm(data, data_root, split or "validation", "L" if in_chans == 1 else "RGB", 0)
    splits = open_data(data, in_chans=in_chans, data_root=data_root if data in DATA_SETS else None)
    parts = {name: getattr(splits, name) for name in ("test", "val", "train") if getattr(splits, name) is not None}
    if split is not None and split not in parts:
        raise InputError(f"--split {split}: data set {data!r} has {', '.join(parts)}; choose one of them")
    return parts[split or next(iter(parts))]
