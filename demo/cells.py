"""Copy a few test cells of ELPV into a folder, each named by its number and what it truly is."""

import shutil
import sys
from pathlib import Path

from patnet.data.elpv import TWO_CLASSES, cells

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
tested = [cell for cell in cells() if cell.test and cell.probability in (0, 1)]
for cell in tested[:: len(tested) // 12][:12]:
    truth = TWO_CLASSES[cell.probability >= 0.5]
    shutil.copyfile(cell.path, folder / f"{cell.path.stem}-{truth}.png")
