"""Colours as text."""

from __future__ import annotations


def parse_color(text: str) -> tuple[int, int, int]:
    """Return red, green and blue of `#rrggbb`, 0 to 255."""
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue
