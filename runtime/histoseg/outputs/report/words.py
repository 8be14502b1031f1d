"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable

ABSENT = "not present"
SMALLEST = 1e-4


def say_number(value: float) -> str:
    """Return a number to three digits, whole above 100, without an exponent."""
    if 0 < value < SMALLEST:
        return f"<{SMALLEST}"
    if value == 0 or value >= 100:
        return f"{value:,.0f}".replace(",", "\u202f")
    exponent = int(f"{value:.2e}".partition("e")[2])  # of the rounded value
    return f"{value:.{max(0, 2 - exponent)}f}"


def say_share(part: float, whole: float) -> str:
    """Return a share as percent: of nothing it is a dash, and next to none or all does not round away."""
    if not whole:
        return "\u2013"
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "<0.01\u202f%"
    if 99.99 < percent < 100:
        return ">99.99\u202f%"
    return f"{percent:.2f}\u202f%" if percent % 100 else f"{percent:.0f}\u202f%"


def say_score(score: float | None) -> str:
    """Return a score to three digits; that of a class that is nowhere is no number."""
    return ABSENT if score is None else f"{score:.3f}"


def say_seconds(seconds: float) -> str:
    """Return seconds, and from two minutes on minutes, and from two hours on hours."""
    for least, unit, name in ((7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:.1f}\u202f{name}"
    return f"{seconds:.1f}\u202fs"


def say_size(sides: Iterable[object]) -> str:
    """Return sides with a sign of multiplication between them."""
    return " \u00d7 ".join(map(str, sides))


def say_length(um: float) -> str:
    """Return a length in mm, or below one in um."""
    return f"{say_number(um / 1000)}\u202fmm" if um >= 1000 else f"{say_number(um)}\u202fµm"
