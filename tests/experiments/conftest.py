"""The scripts of experiments/ are imported as they import each other."""

import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path += [str(EXPERIMENTS), str(EXPERIMENTS / "language")]
