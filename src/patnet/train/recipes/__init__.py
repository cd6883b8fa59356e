"""Recipes: YAML files of options, one for each variant on ImageNet-1K and one for ELPV."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ...errors import InputError, nearest

__all__ = ["RECIPES", "recipe_file"]

# The files of this folder by name.
RECIPES = {Path(str(file)).stem: Path(str(file)) for file in files(__name__).iterdir() if file.name.endswith(".yaml")}


def recipe_file(name: str, recipes: Mapping[str, Path] = RECIPES) -> Path:
    """The file of a recipe.

    Args:
        name: Its name, or a YAML file.
        recipes: Files by name.

    Raises:
        InputError: If there is neither.
    """
    if name in recipes:
        return recipes[name]
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(recipes))
    raise InputError(f"--recipe {name}: neither a recipe{nearest(name, recipes)} nor a YAML file; there are {known}")
