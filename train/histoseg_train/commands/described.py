"""Options that files answer: defaults from `dataset.json` or a recipe, over which goes what a person says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from histoseg.errors import DataError
from histoseg_train.description import read_description
from histoseg_train.recipes import SUFFIX, find_recipe, list_recipes, read_fit_options

# these say where, and not how, to train
PLACES = ("output", "root", "recipe", "restart", "tensorboard", "help")


def take_description(context: click.Context, _parameter: click.Parameter, data: Path | None) -> Path | None:
    """Let options default to what the folder's `dataset.json`, or the `[fit]` of a `.toml` file, says.

    For an argument that is eager: it is read before the options are.
    """
    if data is None:
        return None
    _add_defaults(context, _read_defaults(context, data), wins=False)
    return data


def take_recipe(context: click.Context, _parameter: click.Parameter, name: str | None) -> Path | None:
    """Let options default to what a recipe says, whatever the data say. For an option that is eager."""
    if name is None:
        return None
    path = find_recipe(name)
    _add_defaults(context, _translate(context, path), wins=True)
    return path


def _read_defaults(context: click.Context, data: Path) -> dict[str, Any]:
    if data.suffix.lower() == SUFFIX and data.is_file():
        return _translate(context, data)
    if not data.exists() and str(data) in list_recipes():
        return _translate(context, find_recipe(data))
    said = read_description(data)
    if said is None:
        return {}
    pairs = zip(said.class_names, said.class_colors, strict=True)
    classes = ",".join(f"{name}={color}" for name, color in pairs)
    return {"classes": classes, "spacing_um_px": said.spacing_um_px}


def _translate(context: click.Context, path: Path) -> dict[str, Any]:
    """Return the `[fit]` of a recipe by the names of the command's parameters, of those that it has."""
    from histoseg_train.commands.fit import fit

    known, wanted = _list_options(fit), _list_options(context.command)
    options = read_fit_options(path)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise DataError(
            f"{path}: fit has '{unknown[0]}', expected options of `histoseg-train fit` without "
            "dashes, such as arch or learning-rate"
        )
    return {
        str(wanted[key].name): [value] if wanted[key].multiple and isinstance(value, str) else value
        for key, value in options.items()
        if key in wanted
    }


def _list_options(command: click.Command) -> dict[str, click.Option]:
    """Return every option that says how to train, by what a person writes."""
    return {
        option.opts[0].removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in PLACES
    }


def _add_defaults(context: click.Context, found: Mapping[str, Any], *, wins: bool) -> None:
    before = dict(context.default_map or {})
    context.default_map = {**before, **found} if wins else {**found, **before}
