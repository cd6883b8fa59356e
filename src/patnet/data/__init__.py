"""Data sets by name, by folder and through timm; reading images; transforms; loaders."""

from .about import ABOUT, AboutData
from .datasets import DataSplits, ImageFiles, stratified_split
from .detection import DetectionDataset, open_annotations
from .images import IMAGE_SUFFIXES, UnreadableImage, convert_image, find_images, read_image
from .readable import Unreadable
from .sources import DATA_SETS, default_cache_dir, is_timm, open_data, open_split
from .transforms import eval_transform, train_transform

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
    "convert_image",
    "default_cache_dir",
    "eval_transform",
    "find_images",
    "is_timm",
    "open_annotations",
    "open_data",
    "open_split",
    "read_image",
    "stratified_split",
    "train_transform",
]
