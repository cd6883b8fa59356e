"""A classifier for the page: its answers to one image, and examples from its data."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data import DATA_SETS, ImageFiles, UnreadableImage, distinct_names, eval_transform, is_timm, read_image
from ..deploy import Exported
from ..errors import InputError
from ..inspection import Inspection, View
from ..inspection.run import rgb_of, view_of
from ..models import Loaded, PATNet

MAX_SIDE = 512  # px, of the larger sides in which an image can be given to the network
THUMBNAIL = 160  # px, longer side of an example in the page


@dataclass(frozen=True)
class Example:
    """A file of the run's data, its image reduced, and its ground truth."""

    file: Path
    thumbnail: Image.Image
    label: str


class ImageClassifier:
    """A classifier, exported or not, that answers for one image at a time; the name is that of its run directory."""

    def __init__(self, loaded: Loaded, name: str) -> None:
        self.name = name
        names = distinct_names(loaded.class_names)  # which the page needs
        threshold = loaded.threshold
        if threshold is not None:
            threshold = replace(threshold, label=names[loaded.class_names.index(threshold.label)])
        self.loaded = replace(loaded, class_names=names, threshold=threshold)
        model: Any = loaded.model
        self.exported = isinstance(model, Exported)
        architecture = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
        self.architecture = f"{model.info.model}, exported" if self.exported else architecture
        side = int(loaded.data_config["input_size"][-1])
        larger = [k * side for k in (2, 4) if isinstance(model, PATNet) and k * side <= MAX_SIDE]
        self.sides = [side, *larger]  # in px; the first is that of training

    @torch.inference_mode()
    def classify(self, image: Image.Image, side: int) -> tuple[View, float]:
        """What the network finds in an image of that width in px, and the seconds that it takes without inspection.

        Of an exported file there are classes, and neither gates nor attention.
        """
        channels, height, width = self.loaded.data_config["input_size"]
        size = (channels, side * height // width, side)
        loaded = replace(self.loaded, data_config={**self.loaded.data_config, "input_size": size})
        pixels = eval_transform(loaded.data_config)(image)
        start = time.perf_counter()
        logits = loaded.model(pixels[None])
        seconds = time.perf_counter() - start
        if not self.exported:
            return view_of(loaded, image), seconds
        found = Inspection(logits[0].float().numpy(), missing=["An exported file hides its layers."])
        return View(found, rgb_of(loaded, pixels), loaded.class_names), seconds

    def examples(self, count: int = 8) -> list[Example]:
        """Held-out images of the run, evenly from each class; none without its data."""
        if self.loaded.run is None:
            return []
        from ..train.config import TrainConfig
        from ..train.data import open_run_data
        from ..train.run import RunDirectory

        try:
            config: TrainConfig = RunDirectory(self.loaded.run).read_config()
            if config.data not in DATA_SETS and is_timm(config.data):
                return []  # they could be downloaded
            splits = open_run_data(replace(config, cache_size=None))
        except InputError:
            return []
        images = splits.test or splits.val
        if not isinstance(images, ImageFiles) or not splits.labelled:
            return []
        examples = []
        labels = sorted({label for _, label in images.samples})[:count]
        for label in labels:
            files = [file for file, k in images.samples if k == label]
            wanted = min(len(files), max(1, count // len(labels)))
            for file in (files[i * len(files) // wanted] for i in range(wanted)):
                with suppress(UnreadableImage):
                    thumbnail = read_image(file)
                    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
                    examples.append(Example(file, thumbnail, splits.class_names[label]))
        return examples
