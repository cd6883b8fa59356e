"""Copy twelve test images of ELPV into a folder, each named by its number and label."""

import shutil
import sys
from pathlib import Path

from patnet.data.elpv import TWO_CLASSES, solar_cells

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
test = [cell for cell in solar_cells() if cell.test]
certain = [cell for cell in test if not cell.doubtful]
for cell in certain[:: len(certain) // 12][:12]:
    shutil.copyfile(cell.path, folder / f"{cell.path.stem}-{TWO_CLASSES[cell.probability >= 0.5]}.png")
for split, cells in (("images", solar_cells()), ("test images", test)):
    thirds = [sum(cell.level == level for cell in cells) for level in (1, 2)]
    print(
        f"{sum(thirds)} of {len(cells)} {split} have a doubtful label: "
        f"{thirds[0]} with a defect probability of 1/3, {thirds[1]} of 2/3."
    )
