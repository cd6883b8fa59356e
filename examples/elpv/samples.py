"""Draw solar cells with painted defects, as pretrain.py trains on them, and the masks of the defects.

python examples/elpv/samples.py --out painted.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from painting import DEFECTS, paint
from PIL import Image

from patnet.data import read_image
from patnet.data.elpv import solar_cells
from patnet.files import save_figure

SIZE = 128  # px, of the recipe
COLORS = np.array([[230, 40, 60], [40, 130, 200], [60, 190, 80]]) / 255


def main(out: Path, count: int, seed: int) -> None:
    """Draw `count` solar cells in two rows, the cells above and their masks below."""
    cells = [cell for cell in solar_cells() if not cell.test and cell.probability == 0]
    rng = np.random.default_rng(seed)
    figure = Figure(figsize=(1.7 * count, 4.1), layout="constrained")
    columns = figure.subplots(2, count, squeeze=False)
    for above, below in columns.T:
        masks = np.zeros((len(DEFECTS), 1, 1), bool)
        while not masks.any():
            factor, masks = paint(SIZE, rng)
        image = read_image(cells[rng.integers(len(cells))].path, "L").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        grey = np.asarray(image) / 255 * factor
        above.imshow(grey, cmap="gray", vmin=0, vmax=1)
        shown = np.repeat(grey[..., None], 3, axis=2)
        for color, mask in zip(COLORS, masks, strict=True):
            shown[mask] = 0.2 * shown[mask] + 0.8 * color
        below.imshow(shown)
    for axes in columns.flat:
        axes.axis("off")
    for color, defect in zip(COLORS, DEFECTS, strict=True):
        columns[1, 0].plot([], [], "s", color=color, label=defect)
    figure.legend(*columns[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Functional solar cells of ELPV with painted defects, and the masks of the defects")
    save_figure(figure, out, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("painted.png"), help="PNG file.")
    parser.add_argument("--count", type=int, default=8, help="Number of solar cells.")
    parser.add_argument("--seed", type=int, default=5, help="Random seed.")
    options = parser.parse_args()
    main(options.out, options.count, options.seed)
