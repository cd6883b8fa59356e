"""Recipes: YAML files of options with the authors' schedule on COCO for three variants."""

from importlib.resources import files
from pathlib import Path

__all__ = ["RECIPES"]

# The files of this folder by name.
RECIPES = {Path(str(file)).stem: Path(str(file)) for file in files(__name__).iterdir() if file.name.endswith(".yaml")}
