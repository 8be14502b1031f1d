"""Recipes: `.toml` files that list the sources of a training set and, under `[fit]`, how to train on it.

Some travel with the package and are known by their names.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from histoseg.errors import DataError

SUFFIX = ".toml"


def list_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that travel with the package."""
    return tuple(sorted(file.stem for file in _find_folder().glob(f"*{SUFFIX}")))


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        name: Of one that travels with the package, or the path of a `.toml` file.

    Raises:
        DataError: There is none.
    """
    path = Path(name)
    if path.suffix.lower() == SUFFIX and path.is_file():
        return path
    if str(name) in list_recipes():
        return _find_folder() / f"{name}{SUFFIX}"
    raise DataError(f"{name}: no recipe, expected a {SUFFIX} file or one of {', '.join(list_recipes())}")


def is_shipped(path: Path) -> bool:
    """Tell whether a file is a recipe that travels with the package."""
    return path.parent == _find_folder()


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a `.toml` file holds.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from error


def read_fit_options(path: Path) -> dict[str, Any]:
    """Return the `[fit]` table of a recipe: options of `histoseg-train fit` without their dashes.

    Raises:
        DataError: The file cannot be read, or `fit` is no table.
    """
    options = read_toml(path).get("fit", {})
    if not isinstance(options, dict):
        raise DataError(f"{path}: fit is {options!r}, expected a table of options")
    return options


def _find_folder() -> Path:
    here = Path(__file__).resolve().parent
    # in a checkout, the recipes lie beside the package; in a wheel, inside of it
    installed = here / "recipes"
    return installed if installed.is_dir() else here.parent / "recipes"
