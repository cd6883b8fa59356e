"""The one policy for images that cannot be read, in training, evaluation and prediction."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from ..errors import InputError

# "replace" takes the next image that can be read (training), "report" a blank image whose label is `Unreadable`
# (prediction), "raise" stops (evaluation, and training with --strict).
Policy = Literal["replace", "report", "raise"]


@dataclass(frozen=True)
class Unreadable:
    """The label of a blank image that takes the place of one that cannot be read, with the reason on one line."""

    reason: str


def read_item(
    dataset: Any, index: int, transform: Callable | None = None, *, policy: Policy = "raise", joint: bool = False
) -> tuple[Any, Any, list[str]]:
    """An item of a data set, transformed, and one line for each image that could not be read.

    The data set raises `InputError` or `OSError` for such an image. The transform takes and gives an image, or with
    `joint` an image and its label.

    Raises:
        InputError: If the image cannot be read and the policy is `"raise"`, or no image of the data set can be read.
    """
    faults: list[str] = []
    for offset in range(len(dataset) if policy == "replace" else 1):
        number = (index + offset) % len(dataset)
        try:
            image, label = dataset[number]
            if transform is not None:
                image, label = transform(image, label) if joint else (transform(image), label)
            return image, label, faults
        except (InputError, OSError) as error:
            if policy == "raise" and isinstance(error, InputError):
                raise
            faults.append(" ".join(str(error).split()) or f"image {number}: cannot be read")
    if policy == "report":
        blank = Image.new("RGB", (32, 32))
        return transform(blank) if transform else blank, Unreadable(faults[0]), faults
    raise InputError(faults[0] if policy == "raise" else f"no image of the data set can be read ({faults[0]})")


def read_stream(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """The items of a stream, which cannot continue after an image that cannot be read.

    Raises:
        InputError: Where the stream cannot be read.
    """
    items = iter(dataset)
    for number in itertools.count():
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:  # each of timm's readers raises its own types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"image {number} of the stream cannot be read ({reason})") from error
        yield item
