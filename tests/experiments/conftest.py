"""The scripts of experiments/ are imported as they import each other."""

import sys
from importlib.util import find_spec
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.append(str(EXPERIMENTS))
collect_ignore = [] if find_spec("tokenizers") else ["test_language_runs.py"]
