"""What the commands share: quiet start-up of Keras, class lists, tables for people."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping

import click

from histoseg_train.quiet import silence_stderr


def import_keras() -> None:
    """Import Keras, with TensorFlow unless KERAS_BACKEND says otherwise, without start-up messages.

    Raises:
        click.ClickException: Keras or its backend is not installed.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with silence_stderr():
            importlib.import_module("keras")
    except ImportError as error:
        backend = os.environ["KERAS_BACKEND"]
        raise click.ClickException(
            f"cannot import Keras with the backend {backend} ({error}); "
            "install histoseg with its extra [train]"
        ) from error


def parse_classes(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names and colours from `name=#rrggbb,name=#rrggbb`, the background first."""
    pairs = [part.strip().partition("=") for part in value.split(",")]
    names, colors = tuple(name for name, _, _ in pairs), tuple(color.lower() for _, _, color in pairs)
    wrong = [color for color in colors if not re.fullmatch(r"#[0-9a-f]{6}", color)]
    if wrong or len(pairs) < 2 or len(set(names)) < len(names) or "" in names:
        raise click.BadParameter(
            f"got '{value}', expected two or more, the background first: background=#ffffff,nucleus=#00a000"
        )
    if len(set(colors)) < len(colors):
        raise click.BadParameter(f"got '{value}', expected colours that differ; give one class another")
    return names, colors


def format_dice(per_source: Mapping[str, float]) -> str:
    """Return the Dice of each source in one line."""
    return "  ".join(f"{name} {value:.3f}" for name, value in per_source.items())
