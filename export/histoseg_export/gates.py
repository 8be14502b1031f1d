"""What an exported file must hold before it is written: a gate for each precision, a flag for each figure."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
class Floor:
    """How far the source model is from itself when its images change by rounding alone.

    No file can be closer to it than that. Networks in which a comparison decides where values go, as the
    pooling indices of SegNet, turn on near-ties, and what a rounding error moves spreads from there.
    """

    label_agreement: float
    off_ppm: float
    mean_abs: float


FLOOR_FACTOR = 3.0
"""A file may differ by so much more than its source does from itself: it rounds in every layer."""
LEAST_LABELS = 0.999
"""No floor lowers the gate of labels below this."""


def relax_gate(gate: Gate, floor: Floor) -> Gate:
    """Return the gate for a model that rounding alone changes by `floor`."""
    labels = max(LEAST_LABELS, 1 - FLOOR_FACTOR * (1 - floor.label_agreement))
    off = gate.max_off_ppm
    return replace(
        gate,
        min_labels=min(gate.min_labels, labels),
        max_off_ppm=None if off is None else max(off, min(PPM, FLOOR_FACTOR * floor.off_ppm)),
    )


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
