"""What the relative position encoding of the self-attention has learned, as maps over offsets.

In bias mode a map holds what is added to a logit at each offset. In contextual mode that depends on the query: with
pictures, a map holds the mean of what is added over their queries; without, the norm of the table's vectors, which
says how much an offset can matter, not which way.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..errors import InputError
from ..nn import RelativePosition
from .listening import find_layers, listening, picture_batches

__all__ = ["draw_position", "position_maps", "to_markdown"]

BIAS, MEAN, NORM = "bias", "mean over queries", "norm"


class _MeanQuery:
    """Mean of the scaled queries of each head over positions and pictures."""

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.count = 0

    def add(self, q: Tensor) -> None:
        """Take `(N, heads, H * W, head_dim)` queries."""
        self.total = self.total + q.cpu().double().sum((0, 2))
        self.count += q.shape[0] * q.shape[2]

    def __call__(self) -> Tensor:
        return self.total / self.count  # (heads, head_dim)


def position_maps(
    model: nn.Module, height: int, width: int, *, pictures: Tensor | Iterable[Any] | None = None
) -> dict[str, Any]:
    """The term that each block's relative positions add to the logits, over the offsets of a map.

    An offset is that from the key to the query, as in `patnet.nn.relative_position`.

    Args:
        model: The network; its mode is restored after.
        height: Rows of the map that is attended over, in cells: the picture's over 32 in stage 4.
        width: Its columns.
        pictures: For the contextual mode, `(N, in_chans, H, W)`, or a loader; see `picture_batches`.

    Returns:
        `blocks`, each with `method`, `mode`, what its numbers are (`kind`: `"bias"`, `"mean over queries"` or
        `"norm"`), a map of `2 * height - 1` rows and `2 * width - 1` columns for each head (`maps`), the difference of
        its largest and its least value (`spread`), how many buckets lie in the map (`buckets`) and how many of those
        have learned anything (`learned`, that is, are not zero); and `untrained`, whether all tables are zero, as at
        the start. All for JSON.

    Raises:
        InputError: If the network has no relative positions, the size is no size, or there are no pictures in
            `pictures`.
    """
    if min(height, width) < 1:
        raise InputError(f"a map of {height}x{width} has no offsets: give at least 1x1")
    layers = find_layers(model, RelativePosition)
    if not layers:
        raise InputError("the network has no relative positions: none of its mixers is PAT_sf with a position method")
    queries = [_MeanQuery() for _ in layers]
    if pictures is not None and any(layer.module.contextual for layer in layers):
        hooks: list[tuple[nn.Module, str, Callable[[Tensor], None]]] = [
            (layer.module, "input", mean.add) for layer, mean in zip(layers, queries, strict=True)
        ]
        with listening(model, hooks):
            for images in picture_batches(model, pictures):
                model(images)
        if queries[0].count == 0:
            raise InputError("there are no pictures to take queries from: give some, or none for the tables' norms")
    blocks = []
    for layer, query in zip(layers, queries, strict=True):
        position: RelativePosition = layer.module
        table = position.table.detach().cpu().double()
        if not position.contextual:
            kind, by_bucket = BIAS, table
        elif query.count:
            kind, by_bucket = MEAN, torch.einsum("hd,hdb->hb", query(), table)
        else:
            kind, by_bucket = NORM, table.norm(dim=1)
        buckets = position.offsets(position.table, height, width)[0].view(2 * height - 1, 2 * width - 1).cpu()
        maps = by_bucket[:, buckets]  # (heads, 2 H - 1, 2 W - 1)
        reached = buckets.unique()
        blocks.append(
            {
                "layer": layer.name,
                "label": layer.label,
                "method": "product" if position.product else "euclidean",
                "mode": "contextual" if position.contextual else "bias",
                "kind": kind,
                "maps": maps.tolist(),
                "spread": (maps.amax((1, 2)) - maps.amin((1, 2))).tolist(),
                "buckets": len(reached),
                "learned": int(table.flatten(0, -2)[:, reached].any(0).sum()),
            }
        )
    untrained = not any(layer.module.table.any() for layer in layers)
    return {"height": height, "width": width, "untrained": untrained, "blocks": blocks}


def draw_position(result: Mapping[str, Any]) -> Figure:
    """The maps, a row for each block and a column for each head, on one scale for a block.

    Only differences between offsets act on the attention, so each bias is drawn less its mean over the map.
    """
    blocks = result["blocks"]
    heads = max(len(block["maps"]) for block in blocks)
    figure = Figure(figsize=(2.3 * heads + 1.6, 2.35 * len(blocks) + 0.8), layout="constrained")
    grid = figure.subplots(len(blocks), heads, squeeze=False)
    rows, columns = result["height"] - 0.5, result["width"] - 0.5
    for block, row in zip(blocks, grid, strict=True):
        maps = np.array(block["maps"])
        norm = block["kind"] == NORM
        shown = maps if norm else maps - maps.mean((1, 2), keepdims=True)
        limit = float(np.abs(shown).max()) or 1.0
        for head, axes in enumerate(row):
            if head >= len(maps):
                axes.axis("off")
                continue
            image = axes.imshow(
                shown[head],
                extent=(-columns, columns, rows, -rows),
                cmap="viridis" if norm else "RdBu_r",
                vmin=0 if norm else -limit,
                vmax=limit,
                interpolation="nearest",
            )
            axes.set_title(f"block {block['label']}, head {head + 1}\nspread {block['spread'][head]:.2g}", fontsize=8.5)
            axes.tick_params(labelsize=7.5)
            axes.locator_params(integer=True, nbins=5)
        row[0].set_ylabel(f"{block['learned']} of {block['buckets']} buckets learned\ndr, rows", fontsize=8.5)
        figure.colorbar(image, ax=row.tolist(), shrink=0.85).ax.tick_params(labelsize=7.5)
    for axes in grid[-1]:
        axes.set_xlabel("dc, columns", fontsize=8.5)
    kinds = {
        BIAS: "added to the logit, less the head's mean",
        MEAN: "added to the logit, mean over the pictures' queries, less the head's mean",
        NORM: "norm of the learned vectors",
    }
    said = ", ".join(dict.fromkeys(f"{block['method']}: {kinds[block['kind']]}" for block in blocks))
    if result["untrained"]:
        said += "\nall zero: nothing was learned yet"
    figure.suptitle(
        f"Relative positions over offsets from key to query, {result['height']}x{result['width']} map\n{said}",
        fontsize=10,
    )
    return figure


def largest_spread(result: Mapping[str, Any]) -> float:
    """By how much the term differs at most between two offsets, over all heads and blocks."""
    return max(max(block["spread"]) for block in result["blocks"])


def finding(result: Mapping[str, Any]) -> str:
    """What the maps show, in a sentence."""
    if result["untrained"]:
        return "All tables are zero: the network is not trained, and its attention sees content alone."
    blocks = result["blocks"]
    learned, buckets = (sum(block[key] for block in blocks) for key in ("learned", "buckets"))
    unit = "the norm of the learned vectors" if blocks[0]["kind"] == NORM else "the term added to a logit"
    return (
        f"On a map of {result['height']}x{result['width']}, {learned} of {buckets} buckets have learned anything, and "
        f"{unit} differs by at most {largest_spread(result):.3g} between two offsets."
    )


def to_markdown(result: Mapping[str, Any]) -> str:
    """A table by block, a sentence of what the maps show, and one of what they cannot show."""
    lines = [
        "| block | method | mode | numbers | buckets in the map | learned | largest spread of a head |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for block in result["blocks"]:
        cells = [block[key] for key in ("label", "method", "mode", "kind", "buckets", "learned")]
        lines.append(f"| {' | '.join(map(str, cells))} | {max(block['spread']):.3g} |")
    return "\n".join(
        [
            *lines,
            "",
            finding(result),
            "This does not show how much the attention heeds positions, for that depends on how far the logits of the "
            "content differ, nor anything of offsets beyond the maps of training, whose buckets stay zero.",
            "",
        ]
    )
