"""A folder of class folders: with `train/` and `val/` (and perhaps `test/`), or split by a seed."""

from pathlib import Path

from torchvision.datasets import ImageFolder

from ..errors import InputError
from .images import IMAGE_SUFFIXES
from .splits import DataSplits, PictureFiles, stratified_split

__all__ = ["load_folder"]


def _class_folders(root: Path) -> ImageFolder:
    """The pictures below `root`, a folder for each class."""
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir()]
    except OSError as error:
        raise InputError(f"{root}: the folder cannot be read ({error.strerror or error})") from error
    if not folders:
        raise InputError(f"{root}: holds no class folders; put the pictures of each class into a folder of its name")
    found = ImageFolder(
        str(root), allow_empty=True, is_valid_file=lambda name: Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    filled = {label for _, label in found.samples}
    for name, label in found.class_to_idx.items():
        if label not in filled:
            raise InputError(
                f"{root / name}: the class has no pictures; add some ({', '.join(sorted(IMAGE_SUFFIXES))}) "
                "or remove the folder"
            )
    return found


def load_folder(root: Path, *, mode: str = "RGB", val_fraction: float = 0.1, seed: int = 0) -> DataSplits:
    """Pictures in class folders.

    Args:
        root: A folder with `train/` and `val/` (or `validation/`), each with a folder for each class, and perhaps
            `test/`; or a folder of class folders, from which a seeded, stratified share is kept for validation.
        mode: `"RGB"` or `"L"`.
        val_fraction: That share, in [0, 1).
        seed: Of that choice.

    Raises:
        InputError: If a folder is missing or empty, a class has no pictures, or a split has classes that training
            lacks.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: {'is not a folder' if root.exists() else 'no such folder'}; give a folder of class folders"
        )
    names = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
    parts = {part: root / name for part in names for name in names[part] if (root / name).is_dir()}

    if "train" not in parts:
        for held_out_part in parts.values():
            raise InputError(
                f"{root}: has {held_out_part.name}/ but no train/; add it, or give the class folders alone"
            )
        found = _class_folders(root)
        learn, choose = stratified_split([label for _, label in found.samples], val_fraction, seed)
        samples = [(Path(path), label) for path, label in found.samples]
        train = PictureFiles([samples[i] for i in learn], mode)
        val = PictureFiles([samples[i] for i in choose], mode)
        return DataSplits(found.classes, train, val if choose else None)

    trained = _class_folders(parts["train"])
    splits: dict[str, PictureFiles | None] = {"val": None, "test": None}
    for part in splits:
        if part not in parts:
            continue
        held_out = _class_folders(parts[part])
        for name in held_out.classes:
            if name not in trained.class_to_idx:
                raise InputError(
                    f"{parts[part] / name}: train/ has no class of this name; add it there or remove it here"
                )
        splits[part] = PictureFiles(
            [(Path(path), trained.class_to_idx[held_out.classes[label]]) for path, label in held_out.samples], mode
        )
    samples = [(Path(path), label) for path, label in trained.samples]
    if splits["val"] is None:
        learn, choose = stratified_split([label for _, label in samples], val_fraction, seed)
        splits["val"] = PictureFiles([samples[i] for i in choose], mode) if choose else None
        samples = [samples[i] for i in learn]
    return DataSplits(trained.classes, PictureFiles(samples, mode), splits["val"], splits["test"])
