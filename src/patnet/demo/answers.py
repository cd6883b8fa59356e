"""A network's answer to one picture."""

import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..data import DATA_SETS, PictureFiles, eval_transform, open_data, read_image
from ..deploy.load import load_network
from ..errors import InputError
from ..inspection import Inspection, inspect_network
from ..models import PATNet

__all__ = ["Answer", "Classifying", "Example"]

LONGEST = 512  # px, of the larger sides at which a picture can be looked at
SMALL = 160  # px, of an example's longer side in the page


@dataclass(frozen=True)
class Example:
    """A picture of the run's data, the same reduced, and what it truly is."""

    path: Path
    small: Image.Image
    truth: str


@dataclass(frozen=True)
class Answer:
    """What the network says of a picture.

    Attributes:
        probabilities: Of each class, by its name.
        seconds: That the network took.
    """

    probabilities: dict[str, float]
    seconds: float


class Classifying:
    """The network of a run or checkpoint, ready to answer.

    Args:
        path: A run folder, any checkpoint, or a file that `patnet export` wrote.
        which: `"best"` or `"last"` weights of a run folder.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """

    def __init__(self, path: str, which: str = "best") -> None:
        self.path = path
        self.network = load_network(path, which)
        self.model: Any = self.network.model
        # Classes of the same name, of which ImageNet has two pairs, are told apart by their numbers.
        counts = Counter(self.network.class_names)
        names = enumerate(self.network.class_names)
        self.class_names = [f"{name} ({i})" if counts[name] > 1 else name for i, name in names]

    @property
    def in_torch(self) -> bool:
        """Whether it is PyTorch's own, and no exported file."""
        return isinstance(self.model, torch.nn.Module)

    @property
    def architecture(self) -> str:
        """The model's name as timm knows it, or what kind of network it is."""
        if self.in_torch:
            return getattr(self.model, "pretrained_cfg", {}).get("architecture") or type(self.model).__name__
        return f"{self.model.info.model}, exported"

    @cached_property
    def sides(self) -> list[int]:
        """The sides in px at which a picture can be given to it, its own first; larger ones for finer maps."""
        own = int(self.network.data_config["input_size"][-1])
        return [own, *(k * own for k in (2, 4) if isinstance(self.model, PATNet) and k * own <= LONGEST)]

    def prepare(self, picture: Image.Image) -> dict[int, Tensor]:
        """A picture as the network takes it, `(1, in_chans, H, W)` for each of `sides`."""
        config = self.network.data_config
        channels, height, width = config["input_size"]
        prepared = {}
        for side in self.sides:
            size = (channels, side * height // width, side)
            prepared[side] = eval_transform({**config, "input_size": size})(picture)[None]
        return prepared

    @torch.inference_mode()
    def answer(self, pictures: Tensor) -> Answer:
        """The answer to what `prepare` made of a picture."""
        start = time.perf_counter()
        logits = self.model(pictures)
        seconds = time.perf_counter() - start
        probabilities = dict(zip(self.class_names, logits[0].float().softmax(0).tolist(), strict=True))
        return Answer(probabilities, seconds)

    def seen(self, pictures: Tensor) -> Image.Image:
        """What `prepare` made of a picture, as a person sees it."""
        mean, std = (torch.tensor(self.network.data_config[key])[:, None, None] for key in ("mean", "std"))
        return F.to_pil_image((pictures[0] * std + mean).clamp(0, 1)).convert("RGB")

    def inspect(self, pictures: Tensor) -> Inspection:
        """The gates and the attention for what `prepare` made of a picture."""
        if not self.in_torch:
            return Inspection(np.empty(0), missing=["An exported file does not show what is inside the network."])
        return inspect_network(self.model, pictures)

    def examples(self, count: int = 8) -> list[Example]:
        """Pictures that the run was not trained on, of each class as many; none without its data."""
        if not Path(self.path, "config.yaml").is_file():
            return []
        from ..train import TrainConfig  # which takes seconds, for runs alone

        try:
            config = TrainConfig.read(Path(self.path, "config.yaml"))
            if config.data not in DATA_SETS and not Path(config.data).is_dir():
                return []  # timm's data sets might be fetched
            splits = open_data(config.data, in_chans=config.in_chans, val_fraction=config.val_fraction)
        except InputError:
            return []
        pictures = splits.test or splits.val
        if not isinstance(pictures, PictureFiles):
            return []
        chosen = []
        labels = sorted({label for _, label in pictures.samples})[:count]
        for label in labels:
            of_class = [path for path, k in pictures.samples if k == label]
            wanted = min(len(of_class), max(1, count // len(labels)))
            for path in (of_class[i * len(of_class) // wanted] for i in range(wanted)):
                try:
                    small = read_image(path)
                except InputError:
                    continue
                small.thumbnail((SMALL, SMALL))
                chosen.append(Example(path, small, splits.class_names[label]))
        return chosen
