"""Full names of networks, such as `deeplabv3plus-resnet50-o16-w256`: an architecture and its options."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, TypeVar

from histoseg.errors import OptionError

T = TypeVar("T")

# a slip of a digit makes networks that fit in no memory
MOST_FILTERS = 8192


def number(letter: str, default: int | None, *, shown: bool = False) -> Any:
    """Declare an option that a name gives as a letter and a number.

    Args:
        letter: Its letter.
        default: Its value when a name leaves it out.
        shown: Names always carry it; otherwise only where it is not the default.
    """
    return field(default=default, metadata={"letter": letter, "shown": shown})


def word(default: str, choices: tuple[str, ...], *, shown: bool = False) -> Any:
    """Declare an option that a name gives as one of some words."""
    return field(default=default, metadata={"choices": choices, "shown": shown})


def format_name(base: str, options: Any) -> str:
    """Return the full name of an architecture with its options."""
    parts = [base]
    for item in fields(options):
        value = getattr(options, item.name)
        if item.metadata["shown"] or value != item.default:
            parts.append(f"{item.metadata.get('letter', '')}{value}")
    return "-".join(parts)


def parse_options(name: str, options_type: Callable[..., T]) -> T:
    """Return the options that a full name gives.

    Raises:
        OptionError: A part of the name is no option of this architecture, or the options make no network.
    """
    values: dict[str, Any] = {}
    for part in name.split("-")[1:]:
        option, value = _read_part(name, part, options_type)
        if option in values:
            raise OptionError(f"--arch is '{name}': it gives {option} twice, expected it once; leave one out")
        values[option] = value
    return make_options(name, options_type, values)


def make_options(name: str, options_type: Callable[..., T], values: dict[str, Any]) -> T:
    """Return options that were checked.

    Raises:
        OptionError: They make no network.
    """
    try:
        return options_type(**values)
    except ValueError as error:
        raise OptionError(f"--arch is '{name}': {error}") from error


def check_choices(options: Any) -> None:
    """Refuse a word that is none of its option's choices.

    Raises:
        ValueError: The message names the option and its choices.
    """
    for item in fields(options):
        value, choices = getattr(options, item.name), item.metadata.get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"{item.name} is '{value}', expected one of {', '.join(choices)}")


def check_size(width: int, depth: int, *, most_levels: int = 10, cap: int | None = None) -> None:
    """Refuse levels and filters that make no network, or one that fits in no memory.

    Args:
        width: Filters of the first level; each level below has twice as many.
        depth: How often the image is halved.
        most_levels: How often it may be.
        cap: The most filters of any level; `None` for no limit of the architecture's own.

    Raises:
        ValueError: The message names what is out of bounds.
    """
    if width < 1 or not 1 <= depth <= most_levels:
        raise ValueError(f"width is {width} and depth {depth}, expected 1 or more, and 1 to {most_levels}")
    filters = width * 2**depth if cap is None else min(width * 2**depth, cap)
    if filters > MOST_FILTERS:
        raise ValueError(f"the widest level has {filters} filters, expected at most {MOST_FILTERS}")


def _read_part(name: str, part: str, options_type: Any) -> tuple[str, Any]:
    """Return an option and its value."""
    found = re.fullmatch(r"([a-z])([0-9]{1,9})", part)
    for item in fields(options_type):
        if found and item.metadata.get("letter") == found[1]:
            return item.name, int(found[2])
        if part in item.metadata.get("choices", ()):
            return item.name, part
    raise OptionError(f"--arch is '{name}': '{part}' is no option, expected {_list_options(options_type)}")


def _list_options(options_type: Any) -> str:
    """Return such as `w16 (width), d4 (depth), plain or resnet50 (encoder)`."""
    return ", ".join(
        f"{' or '.join(item.metadata['choices'])} ({item.name})"
        if "choices" in item.metadata
        else f"{item.metadata['letter']}{item.default or 64} ({item.name})"
        for item in fields(options_type)
    )
