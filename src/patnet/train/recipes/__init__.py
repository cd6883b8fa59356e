"""Recipes: YAML files of options, one for each variant on ImageNet-1K and those for the built-in data."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ...errors import InputError, nearest

__all__ = ["RECIPES", "recipe_file"]

# Those of this folder by name.
RECIPES = {Path(str(file)).stem: Path(str(file)) for file in files(__name__).iterdir() if file.name.endswith(".yaml")}


def recipe_file(name: str, recipes: Mapping[str, Path] = RECIPES) -> Path:
    """The file of a recipe, by its name in `recipes` or by its own.

    Raises:
        InputError: If there is neither.
    """
    if name in recipes:
        return recipes[name]
    if Path(name).is_file():
        return Path(name)
    raise InputError(
        f"--recipe {name}: neither a recipe{nearest(name, recipes)} nor a YAML file; "
        f"there are {', '.join(sorted(recipes))}"
    )
