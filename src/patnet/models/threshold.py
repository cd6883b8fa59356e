"""A decision threshold for a class, kept next to the weights for which it was chosen."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..files import sha256, write_text

__all__ = ["Threshold", "read_threshold", "save_threshold"]

FILE = "threshold.json"


@dataclass(frozen=True)
class Threshold:
    """An image is of the class `label` if its probability is at least `probability`, else of the best other class.

    Attributes:
        label: Name of the class.
        probability: In [0, 1].
        precision: Precision of the class on the validation images that chose it.
        recall: Its recall there.
    """

    label: str
    probability: float
    precision: float
    recall: float

    def __str__(self) -> str:
        """The decision in words."""
        shares = f"precision {100 * self.precision:.1f} %, recall {100 * self.recall:.1f} %"
        return f"{self.label} from a probability of {self.probability:.4f} on ({shares} on the validation images)"

    def order(self, probs: Tensor, class_names: list[str]) -> Tensor:
        """The classes of each row of probabilities `(N, classes)`, the decided one first, the others by probability."""
        index = class_names.index(self.label)
        others = probs.clone()
        others[:, index] = -1.0
        decided = torch.where(probs[:, index] >= self.probability, index, others.argmax(dim=1))
        return probs.scatter(1, decided[:, None], 2.0).argsort(dim=1, descending=True)


def save_threshold(threshold: Threshold, weights: Path) -> None:
    """Write a threshold next to the file of weights that it belongs to."""
    content = {**asdict(threshold), "weights_sha256": sha256(weights)}
    write_text(weights.with_name(FILE), json.dumps(content, indent=2) + "\n")


def read_threshold(weights: Path) -> Threshold | None:
    """The threshold next to a file of weights; None if there is none, or it was chosen for other weights.

    Raises:
        InputError: If the file is damaged.
    """
    file = weights.with_name(FILE)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        digest = content.pop("weights_sha256")
        found = Threshold(**content)
        valid = isinstance(found.label, str) and 0 <= found.probability <= 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: not a threshold ({error}); remove it, and run patnet evaluate --threshold"
        ) from error
    if not valid:
        raise InputError(f"{file}: not a threshold; remove it, and run patnet evaluate --threshold again")
    return found if digest == sha256(weights) else None
