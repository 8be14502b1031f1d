"""Options that commands share: what the data are, and how patches of them are cut and changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from histoseg.equalize import Equalization
from histoseg.errors import CardError
from histoseg_train.augment import AugmentOptions
from histoseg_train.commands.words import parse_classes

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
Options = tuple[Callable[[Any], Any], ...]

PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(0, min_open=True)

DATA: Options = (
    click.option("--root", type=PATH, help="Folder that the paths in a .toml file are relative to."),
    click.option(
        "--mask-threshold",
        type=click.IntRange(0, 254),
        help="For a folder: mask pixels above this grey level are class 1.",
    ),
    click.option(
        "--dilate",
        "dilate_um",
        default=0.0,
        type=click.FloatRange(0),
        help="For a folder: um by which classes grow.",
    ),
    click.option(
        "--classes",
        default="background=#ffffff,foreground=#00a000",
        callback=parse_classes,
        help="Names and colours, the background first.",
    ),
    click.option("--spacing", "spacing_um_px", default=0.5, type=POSITIVE, help="um/px to train at."),
)
CLAHE: Options = (
    click.option(
        "--clahe",
        type=click.FloatRange(0, min_open=True),
        help="Equalise the contrast of images with this clip limit, such as 2, as the runtime then does too.",
    ),
    click.option(
        "--clahe-cell",
        "cell_px",
        default=Equalization.cell_px,
        type=click.IntRange(16),
        help="Side of its cells in pixels, a power of two.",
    ),
)
PATCHES: Options = (
    click.option("--patch", "size", default=256, type=click.IntRange(8), help="Width and height of patches."),
    click.option(
        "--foreground",
        default=0.5,
        type=click.FloatRange(0, 1),
        help="Share of patches centred near a class other than the background.",
    ),
    click.option("--turns/--no-turns", default=True, help="Flips and quarter turns."),
    click.option(
        "--scale", default=1.4, type=click.FloatRange(1, 4), help="Largest random enlargement; 1: none."
    ),
    click.option(
        "--elastic",
        default=0.0,
        type=click.FloatRange(0, 1),
        help="Share of patches bent by smooth random waves.",
    ),
    click.option(
        "--color-augmentation/--no-color-augmentation",
        default=True,
        help="Change stain, colours, focus and compression, by what follows.",
    ),
    click.option(
        "--restain",
        default=0.0,
        type=click.FloatRange(0, 1),
        help="Share of patches that take on the colours of any image, also of those of weight 0.",
    ),
    click.option("--stain", default=0.3, type=click.FloatRange(0, 1), help="Spread of each stain's amount."),
    click.option("--color", default=1.0, type=click.FloatRange(0, 3), help="Strength of colour changes."),
    click.option("--fold", default=0.15, type=click.FloatRange(0, 1), help="Share of patches with a fold."),
    click.option("--blur", default=0.2, type=click.FloatRange(0, 1), help="Share that is put out of focus."),
    click.option("--jpeg", default=0.25, type=click.FloatRange(0, 1), help="Share that is compressed again."),
)


def add_options(*groups: Options) -> Callable[[Command], Command]:
    """Return a decorator that gives a command the options of some groups, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def pick(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from the options that carry its fields' names."""
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in values.items() if name in names})


def read_augment(values: Mapping[str, Any]) -> AugmentOptions:
    """Return how patches are changed."""
    augment = pick(AugmentOptions, values)
    return augment if values["color_augmentation"] else augment.without_color()


def read_equalization(values: Mapping[str, Any]) -> Equalization | None:
    """Return what the options say, `None` where nothing is equalised; a wrong value is a usage error."""
    if values["clahe"] is None:
        return None
    try:
        return Equalization(values["clahe"], values["cell_px"])
    except CardError as error:
        raise click.UsageError(f"--clahe-cell: {error}") from error
