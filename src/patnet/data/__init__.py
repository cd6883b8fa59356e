"""Data sets by name, by folder and through timm; reading images; transforms; loaders."""

from .datasets import (
    ABOUT,
    DATA_SETS,
    default_cache_dir,
    distinct_names,
    is_timm,
    is_unlabelled,
    load_unlabelled,
    open_data,
    open_split,
)
from .detection import DetectionDataset, open_annotations
from .images import (
    IMAGE_SUFFIXES,
    AboutData,
    DataSplits,
    ImageFiles,
    UnreadableImage,
    convert_image,
    eval_transform,
    find_images,
    read_image,
    stratified_split,
    train_transform,
)
from .unreadable import Unreadable, check_unreadable, describe_unreadable

__all__ = [
    "ABOUT",
    "DATA_SETS",
    "IMAGE_SUFFIXES",
    "AboutData",
    "DataSplits",
    "DetectionDataset",
    "ImageFiles",
    "Unreadable",
    "UnreadableImage",
    "check_unreadable",
    "convert_image",
    "default_cache_dir",
    "describe_unreadable",
    "distinct_names",
    "eval_transform",
    "find_images",
    "is_timm",
    "is_unlabelled",
    "load_unlabelled",
    "open_annotations",
    "open_data",
    "open_split",
    "read_image",
    "stratified_split",
    "train_transform",
]
