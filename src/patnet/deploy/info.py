"""What an exported file says of itself: its labels, its preprocessing, where it comes from and what it takes."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ExportInfo"]

KEY = "patnet"


@dataclass(frozen=True)
class ExportInfo:
    """The metadata of an exported file, kept inside it as JSON under the key `patnet`.

    Attributes:
        model: Name of the architecture.
        source: Run or checkpoint that the weights come from.
        label_names: Names of the classes, in the order of the logits.
        data_config: Preprocessing, as `timm.data.resolve_data_config` gives it.
        batch: Pictures per call; None for any number.
        size: Height and width in px; None for any of at least 64.
        in_chans: Channels of a picture.
        precision: `"fp32"`, `"fp16"` or `"int8"`; pictures and logits are float32 always.
        fused: Whether norms were folded before the export.
        format: Name in `FORMATS`.
        versions: Of patnet, torch and what wrote the file.
    """

    model: str
    source: str
    label_names: list[str]
    data_config: dict[str, Any]
    batch: int | None
    size: tuple[int, int] | None
    in_chans: int
    precision: str
    fused: bool
    format: str
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As text, the form in which files carry it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ExportInfo":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is something else.
        """
        try:
            fields = json.loads(text)
            size = fields.pop("size")
            return cls(size=None if size is None else (int(size[0]), int(size[1])), **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the metadata of an exported network ({error})") from error
