"""A sheet of cells with painted defects, as the recipe `elpv_painted` sees them, and where they are said to be."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from patnet.data import open_data
from patnet.data.painting import KINDS, paint
from patnet.files import save_figure

SIZE = 128  # px, of the recipe
COLORS = np.array([[230, 40, 60], [40, 130, 200], [60, 190, 80]]) / 255


def main(out: Path, count: int, seed: int) -> None:
    """Draw `count` cells in two rows each, the cell above and its masks below, and write the sheet."""
    cells = open_data("elpv-painted", in_chans=1).train.cells
    rng = np.random.default_rng(seed)
    figure = Figure(figsize=(1.7 * count, 4.1), layout="constrained")
    columns = figure.subplots(2, count)
    for above, below in columns.T:
        masks = np.zeros((len(KINDS), 1, 1), bool)
        while not masks.any():
            left, masks = paint(SIZE, rng)
        cell = cells.picture(int(rng.integers(len(cells)))).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        grey = np.asarray(cell) / 255 * left
        above.imshow(grey, cmap="gray", vmin=0, vmax=1)
        shown = np.repeat(grey[..., None], 3, axis=2)
        for color, mask in zip(COLORS, masks, strict=True):
            shown[mask] = 0.2 * shown[mask] + 0.8 * color
        below.imshow(shown)
    for axes in columns.flat:
        axes.axis("off")
    for color, kind in zip(COLORS, KINDS, strict=True):
        columns[1, 0].plot([], [], "s", color=color, label=kind)
    figure.legend(*columns[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Functional cells of ELPV with painted defects, and the masks a network learns from")
    save_figure(figure, out, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("painted.png"))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    main(options.out, options.count, options.seed)
