"""What do relative positions learn? The maps of `patnet.inspection.position` for each configuration that has them."""

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from patnet import InputError
from patnet.bench import markdown_table
from patnet.inspection.position import draw_position, position_maps
from patnet.nn import RelativePosition


def measure(networks: Iterator[tuple[str, nn.Module, Tensor]]) -> dict[str, Any]:
    """What the relative positions add to the logits, by configuration.

    Raises:
        InputError: If no network has relative positions.
    """
    found = {}
    for name, model, images in networks:
        if any(isinstance(module, RelativePosition) for module in model.modules()):
            height, width = images.shape[-2] // 32, images.shape[-1] // 32
            found[name] = position_maps(model, height, width, images=images)
    if not found:
        raise InputError("no configuration has relative positions")
    return found


def _spread(block: Mapping[str, Any]) -> float:
    """Largest difference between two offsets, over the heads of a block."""
    return max(block["spread"])


def finding(result: Mapping[str, Any]) -> str:
    """What the maps show, in one sentence."""
    spreads = (f"{max(map(_spread, maps['blocks'])):.2g} ({name})" for name, maps in result.items())
    return f"The learned terms differ between two offsets by at most {', '.join(spreads)}."


def to_markdown(result: Mapping[str, Any]) -> str:
    """A table by configuration and block, and one sentence of what it cannot show."""
    rows = []
    for name, maps in result.items():
        for block in maps["blocks"]:
            size = f"{maps['height']}x{maps['width']}"
            cells = [name, block["label"], block["kind"], size, str(block["buckets"]), str(block["nonzero"])]
            rows.append([*cells, f"{_spread(block):.3g}"])
    headings = ["configuration", "block", "numbers", "map", "buckets in the map", "not 0", "largest spread of a head"]
    return (
        "First seed. The spread is the largest difference between two offsets.\n\n"
        + "\n".join(markdown_table(headings, rows, left=4))
        + "\n\nThis does not show how much the attention depends on positions, because that depends on the size of the "
        "other terms of the logits, nor anything about offsets beyond the maps of training, whose buckets stay 0."
    )


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """The maps of each configuration."""
    return {name: draw_position(maps) for name, maps in result.items()}
