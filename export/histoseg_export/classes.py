"""Names and colours of classes, as a person gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from itertools import count

PALETTE = ("#ffffff", "#1b7f3b", "#c0392b", "#2c5fa8", "#e0a800", "#7d3c98", "#138d90", "#8d5524")
# as a turn between hues: however many follow each other, they lie well apart
GOLDEN_RATIO = (5**0.5 - 1) / 2


def parse_classes(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read `name=#rrggbb,name=#rrggbb,...`; a colour may be left out.

    Raises:
        ValueError: A name is empty, or a colour is not `#rrggbb`, or that of another class.
    """
    names, colors = [], []
    for index, item in enumerate(text.split(",")):
        name, _, color = (part.strip() for part in item.partition("="))
        if not name:
            raise ValueError(f"class {index + 1} of '{text}' has no name; expected name=#rrggbb,...")
        if color and not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise ValueError(f"colour of class '{name}' is '{color}', expected #rrggbb")
        names.append(name)
        colors.append(color.lower())
    twice = [color for color in colors if color and colors.count(color) > 1]
    if twice:
        raise ValueError(
            f"two classes of '{text}' are {twice[0]}, expected colours that differ; give one another"
        )
    return tuple(names), fill_colors(colors)


def fill_colors(said: Sequence[str]) -> tuple[str, ...]:
    """Return a colour for each class, no two the same.

    Args:
        said: Those that are known, `#rrggbb` in lower case and all different; empty where none is.
    """
    colors, taken = [], {color for color in said if color}
    for place, color in enumerate(said):
        colors.append(color or next(free for free in _iter_palette(place) if free not in taken))
        taken.add(colors[-1])
    return tuple(colors)


def _iter_palette(place: int) -> Iterator[str]:
    """Yield colours for a class, the first one that of its place; beyond the palette, ever more hues."""
    yield from PALETTE[place:]
    for index in count(max(place, len(PALETTE))):
        rgb = hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.65, 0.75)
        yield f"#{bytes(round(255 * value) for value in rgb).hex()}"
