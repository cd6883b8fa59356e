"""What the relative position encoding of the self-attention adds to the logits, as maps over offsets.

In bias mode a map holds what is added to a logit at each offset. In contextual mode that depends on the query: with
images, a map holds the mean over their queries; without, the L2 norm of the table's vectors, which says how much an
offset can matter, but not in which direction.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..errors import InputError
from ..nn import RelativePosition
from .hooks import Hook, find_layers, hooked, image_batches

EXPLANATIONS = {
    "bias": "added to the logit, less the head's mean over offsets",
    "mean over queries": "added to the logit, mean over the queries of the images, less the head's mean over offsets",
    "norm": "L2 norm of the learned vectors",
}


def position_maps(
    model: nn.Module, height: int, width: int, *, images: Tensor | Iterable[Any] | None = None
) -> dict[str, Any]:
    """What each block's relative positions add to the logits, over the offsets of a map.

    An offset goes from the key to the query, as in `patnet.nn.relative_position`.

    Args:
        model: The network; its mode is restored.
        height: Rows of the attention map: the image's height over 32 in stage 4.
        width: Columns of the attention map.
        images: For contextual mode, see `image_batches`.

    Returns:
        `blocks`, for each: `method`; `mode`; `kind` of the numbers, `"bias"`, `"mean over queries"` or `"norm"`;
        `maps`, of `2 * height - 1` rows and `2 * width - 1` columns for each head; `spread`, largest less smallest
        value of each head; `buckets`, how many lie in the map, and `nonzero`, how many of those are not zero. And
        `untrained`, whether all tables are zero, as at the start. All as JSON takes it.

    Raises:
        InputError: If the network has no relative positions, the map no position, or `images` no image.
    """
    if min(height, width) < 1:
        raise InputError(f"a map of {height}x{width} has no offsets: give at least 1x1")
    layers = find_layers(model, RelativePosition)
    if not layers:
        raise InputError("the network has no relative positions: no mixer is PAT_sf with a position method")
    queries: list[list[Tensor]] = [[] for _ in layers]  # mean over the positions of each image, (heads, head_dim)
    if images is not None and any(layer.module.contextual for layer in layers):
        hooks = [
            Hook(layer.module, "input", partial(_take_means, taken))
            for layer, taken in zip(layers, queries, strict=True)
        ]
        with hooked(model, hooks):
            for batch in image_batches(model, images):
                model(batch)
        if not queries[0]:
            raise InputError("there are no images to take queries from: give some, or None for the norms")
    blocks = [
        {"layer": layer.name, "label": layer.label} | _maps(layer.module, taken, height, width)
        for layer, taken in zip(layers, queries, strict=True)
    ]
    untrained = not any(layer.module.table.any() for layer in layers)
    return {"height": height, "width": width, "untrained": untrained, "blocks": blocks}


def _take_means(taken: list[Tensor], q: Tensor) -> None:
    taken.extend(q.cpu().double().mean(2))


def _maps(position: RelativePosition, queries: Sequence[Tensor], height: int, width: int) -> dict[str, Any]:
    """The maps of one block; `queries` are those of each image, `(heads, head_dim)`, if any."""
    table = position.table.detach().cpu().double()
    if not position.contextual:
        kind, by_bucket = "bias", table
    elif queries:
        kind, by_bucket = "mean over queries", torch.einsum("hd,hdb->hb", torch.stack([*queries]).mean(0), table)
    else:
        kind, by_bucket = "norm", table.norm(dim=1)
    buckets = position.offsets(position.table, height, width)[0].view(2 * height - 1, 2 * width - 1).cpu()
    maps, inside = by_bucket[:, buckets], buckets.unique()  # (heads, 2 H - 1, 2 W - 1)
    return {
        "method": "product" if position.product else "euclidean",
        "mode": "contextual" if position.contextual else "bias",
        "kind": kind,
        "maps": maps.tolist(),
        "spread": (maps.amax((1, 2)) - maps.amin((1, 2))).tolist(),
        "buckets": len(inside),
        "nonzero": int(table.flatten(0, -2)[:, inside].any(0).sum()),
    }


def draw_position(result: Mapping[str, Any]) -> Figure:
    """The maps of `position_maps` on one scale, a row for each block and a column for each head.

    Softmax sees differences between offsets only, so a bias is drawn less its mean over the map.
    """
    blocks = result["blocks"]
    norm = blocks[0]["kind"] == "norm"
    maps = [np.array(block["maps"]) for block in blocks]
    if not norm:
        maps = [values - values.mean((1, 2), keepdims=True) for values in maps]
    limit = max(float(np.abs(values).max()) for values in maps) or 1.0
    colors: dict[str, Any] = {"cmap": "viridis", "vmin": 0} if norm else {"cmap": "RdBu_r", "vmin": -limit}
    heads = max(map(len, maps))
    rows, columns = result["height"] - 0.5, result["width"] - 0.5
    size = (9, (min(1.9, 7.2 / heads) * min(max(rows / columns, 0.4), 2.0) + 0.55) * len(blocks) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(blocks), heads, squeeze=False)
    for block, values, row in zip(blocks, maps, grid, strict=True):
        for axes in row[len(values) :]:
            axes.remove()
        for head, axes in enumerate(row[: len(values)]):
            drawn = axes.imshow(values[head], extent=(-columns, columns, rows, -rows), vmax=limit, **colors)
            axes.set_title(f"{block['label']}, head {head + 1}\nspread {block['spread'][head]:.2g}", fontsize=8)
            axes.tick_params(labelsize=8, length=2, labelbottom=row is grid[-1], labelleft=head == 0)
            axes.locator_params(integer=True, nbins=4)
            if row is grid[-1]:
                axes.set_xlabel("column offset", fontsize=8)
        row[0].set_ylabel("row offset", fontsize=8)
    figure.colorbar(drawn, ax=grid.ravel().tolist(), shrink=0.8, aspect=30).ax.tick_params(labelsize=8)
    explanations = dict.fromkeys(f"{block['method']}: {EXPLANATIONS[block['kind']]}" for block in blocks)
    lines = ["Relative positions, by offset from key to query", *explanations]
    if result["untrained"]:
        lines.append("all tables are zero: the network is not trained")
    figure.suptitle("\n".join(lines), fontsize=9)
    return figure
