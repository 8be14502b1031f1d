"""Options that a folder answers itself: defaults from `dataset.json`, over which goes what a person says."""

from __future__ import annotations

from pathlib import Path

import click

from histoseg.errors import HistosegError
from histoseg_train.description import read_description


def take_description(context: click.Context, _parameter: click.Parameter, data: Path) -> Path:
    """Let `--classes` and `--spacing` default to what the folder's `dataset.json` says.

    For an argument that is eager: it is read before the options are.
    """
    try:
        said = read_description(data)
    except HistosegError as error:
        raise click.ClickException(str(error)) from error
    if said is not None:
        pairs = zip(said.class_names, said.class_colors, strict=True)
        classes = ",".join(f"{name}={color}" for name, color in pairs)
        found = {"classes": classes, "spacing_um_px": said.spacing_um_px}
        context.default_map = {**(context.default_map or {}), **found}
    return data
