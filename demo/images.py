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
print(f"{len(test) - len(certain)} of {len(test)} test images have a doubtful label, defect probability 1/3 or 2/3.")
