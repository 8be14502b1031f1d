"""What an exported file must hold before it is written: a gate for each precision, a flag for each figure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from histoseg.errors import OptionError

if TYPE_CHECKING:
    from histoseg.card import Precision

TOLERANCE = 1e-3
"""Difference of a probability from which on an element counts as off."""
PPM = 1e6


@dataclass(frozen=True)
class Gate:
    """What one file must hold; `None` where a figure is not judged."""

    precision: Precision
    min_labels: float
    """Share of pixels whose label must agree with the source model's, 0 to 1."""
    max_off_ppm: float | None = None
    """Elements of a million that may be off by more than `TOLERANCE`."""
    max_dice_drop: float | None = None
    """How far the Dice of any class may fall, 0 to 1."""


@dataclass(frozen=True)
class Gates:
    """The gates of all precisions; a field's name is its flag (`int8_labels` is `--int8-labels`).

    Raises:
        OptionError: A gate is impossible; the message names the flag.
    """

    fp32_labels: float = 0.9999
    fp32_off_ppm: float = 100.0
    fp16_labels: float = 0.999
    int8_labels: float = 0.99
    int8_dice_drop: float = 0.01
    labels_only: bool = False
    """Judge fp32 by its labels, whatever its probabilities: for networks with an argmax inside (the pooling
    indices of SegNet), which turns on near-ties and then differs in places by more than rounding."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            highest = PPM if field.name.endswith("_ppm") else 1.0
            if not 0 <= value <= highest:
                raise OptionError(f"{flag_of(field.name)} is {value:g}, expected 0 to {highest:g}")

    def pick(self, precision: Precision) -> Gate:
        """Return the gate of one precision."""
        if precision == "fp32":
            return Gate(
                precision, self.fp32_labels, max_off_ppm=None if self.labels_only else self.fp32_off_ppm
            )
        if precision == "fp16":
            return Gate(precision, self.fp16_labels)
        return Gate(precision, self.int8_labels, max_dice_drop=self.int8_dice_drop)


def flag_of(field: str) -> str:
    """Return the command line's name of a field of `Gates`."""
    return f"--{field.replace('_', '-')}"
