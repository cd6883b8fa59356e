"""Recipes: YAML files of options, the authors' schedule on COCO for three variants, and one for the built-in panels."""

from importlib.resources import files
from pathlib import Path

__all__ = ["RECIPES"]

# Those of this folder by name.
RECIPES = {Path(str(file)).stem: Path(str(file)) for file in files(__name__).iterdir() if file.name.endswith(".yaml")}
