"""How far one model is from another, in numbers and in the task's terms, and whether its gate holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.blend import choose_labels
from histoseg.errors import ParityError
from histoseg.score import count_confusion
from histoseg.truth import NO_CLASS
from histoseg_export.gates import PPM, TOLERANCE, Floor, Gate, flag_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Labels, Pixels

BATCH = 4
TIMES = ("ms_per_tile", "source_ms_per_tile")
JUDGED_SHARE = 1e-4
"""A class on a smaller share of the pixels is not judged: a few pixels would decide."""


@dataclass(frozen=True)
class ClassDice:
    """How well label maps overlap in one class; `None` where neither map has it, or there is no truth."""

    name: str
    dice: float | None
    """Of the file's labels and the source model's."""
    truth_dice: float | None = None
    """Of the file's labels and the truth."""
    source_truth_dice: float | None = None
    """Of the source model's labels and the truth."""
    share: float = 1.0
    """Of all pixels, how many any of the maps gives to the class, on average."""

    @property
    def drop(self) -> float | None:
        """Return how much Dice was lost: against the truth, or without it what two equal maps would lack."""
        if self.truth_dice is not None and self.source_truth_dice is not None:
            return self.source_truth_dice - self.truth_dice
        return None if self.dice is None else 1 - self.dice


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from its source model, and what was asked of it."""

    reference: str
    source: str
    """Where the tiles came from."""
    tiles: int
    tile_px: tuple[int, int]
    max_abs: float
    """Largest difference of any probability."""
    mean_abs: float
    label_agreement: float
    """Share of pixels with the same label, 0 to 1."""
    differing_pixels: int
    classes: tuple[ClassDice, ...]
    gate: Gate
    off_ppm: float = 0.0
    """Elements of a million that differ by more than `TOLERANCE`."""
    ms_per_tile: float | None = None
    """Milliseconds for a tile on this machine's CPU; the median batch."""
    source_ms_per_tile: float | None = None
    """The same for the source model."""
    floor: Floor | None = None
    """Measured where the gate did not hold without; the gate is then the relaxed one."""

    @property
    def dice_drop(self) -> float | None:
        """Return the largest drop of any class that is large enough to be judged."""
        drops = [
            entry.drop for entry in self.classes if entry.share >= JUDGED_SHARE and entry.drop is not None
        ]
        return max(drops, default=None)

    @property
    def judged_against(self) -> str:
        """Return what Dice drops are measured against."""
        known = any(entry.source_truth_dice is not None for entry in self.classes)
        return "truth masks" if known else f"labels of {self.reference}"

    @property
    def passed(self) -> bool:
        """Whether the gate lets it through; a NaN does not pass."""
        return not self.explain_failures()

    def explain_failures(self) -> tuple[str, ...]:
        """Return what was measured and what was required, for each figure that fails."""
        gate, failures = self.gate, []
        if not (self.label_agreement >= gate.min_labels and np.isfinite(self.max_abs)):
            failures.append(
                f"labels agree on {self.label_agreement:.4%} of pixels (max |dp| {self.max_abs:.2g}), "
                f"required {gate.min_labels:.2%} ({flag_of(f'{gate.precision}_labels')})"
            )
        if gate.max_off_ppm is not None and not self.off_ppm <= gate.max_off_ppm:
            failures.append(
                f"{self.off_ppm:.0f} ppm of probabilities are off by more than {TOLERANCE:g}, "
                f"allowed {gate.max_off_ppm:g} ({flag_of(f'{gate.precision}_off_ppm')})"
            )
        drop = self.dice_drop
        if gate.max_dice_drop is not None and drop is not None and not drop <= gate.max_dice_drop:
            failures.append(
                f"Dice falls by {drop:.4f} against the {self.judged_against}, "
                f"allowed {gate.max_dice_drop:g} ({flag_of(f'{gate.precision}_dice_drop')})"
            )
        return tuple(failures)

    def to_json(self) -> dict[str, Any]:
        """Return the figures, and the gate they were judged by, for the report."""
        return {
            **asdict(self),
            "tile_px": list(self.tile_px),
            "tolerance": TOLERANCE,
            "dice_drop": self.dice_drop,
            "dice_judged_against": self.judged_against,
            "probabilities_judged": self.gate.max_off_ppm is not None,
            "passed": self.passed,
        }

    def to_card(self) -> dict[str, Any]:
        """Return the same without times, which belong to a machine: one model gives one file."""
        return {key: value for key, value in self.to_json().items() if key not in TIMES}


@dataclass(frozen=True)
class Expected:
    """What a source model gives for tiles."""

    words: str
    """Which model."""
    source: str
    """Where the tiles came from."""
    class_names: tuple[str, ...]
    tiles: Pixels
    """`(n, height, width, 3)` uint8."""
    truth: Labels | None
    """`(n, height, width)` class indices, `NO_CLASS` where nothing is known."""
    probabilities: Floats
    """`(n, height, width, classes)` float32."""
    ms_per_tile: float | None = None
    threshold: float | None = None
    """Of two classes: from which probability of the second one a pixel is of it; `None`: the likelier one."""


def compare(run: Callable[[Pixels], Floats], expected: Expected, gate: Gate) -> Parity:
    """Compare anything that predicts tiles with what a source model gave for them.

    Args:
        run: `(n, height, width, 3)` uint8 to `(n, height, width, classes)` float32.
        expected: Tiles, probabilities and truth.
        gate: What is asked of it.
    """
    tiles, truth = expected.tiles, expected.truth
    counts, seconds = Counts(len(expected.class_names), expected.threshold), []
    for batch in iter_batches(len(tiles)):
        pixels = np.ascontiguousarray(tiles[batch])
        begin = perf_counter()
        found = run(pixels)
        seconds.append((perf_counter() - begin) / len(pixels))
        counts.add(expected.probabilities[batch], found, None if truth is None else truth[batch])
    return Parity(
        reference=expected.words,
        source=expected.source,
        tiles=len(tiles),
        tile_px=(tiles.shape[2], tiles.shape[1]),
        max_abs=counts.max_abs,
        mean_abs=counts.sum_abs / counts.values,
        label_agreement=counts.same / counts.pixels,
        differing_pixels=counts.pixels - counts.same,
        classes=counts.describe_classes(expected.class_names),
        off_ppm=counts.off / counts.values * PPM,
        ms_per_tile=middle_ms(seconds),
        source_ms_per_tile=expected.ms_per_tile,
        gate=gate,
    )


def require_parity(parity: Parity, name: str) -> None:
    """Refuse a file that differs too much from its source.

    Args:
        parity: The figures.
        name: The source's name, for the message.

    Raises:
        ParityError: The message holds what was measured, what is required, and what to do.
    """
    failures = parity.explain_failures()
    if failures:
        precision = parity.gate.precision
        raise ParityError(
            f"the {precision} ONNX file does not behave like {name}: {'; '.join(failures)}; no model was "
            f"written, the report holds the figures; {_ADVICE[precision]}"
        )


_ADVICE = {
    "fp32": "please report this model, or judge it by labels alone (--labels-only) if an argmax inside it, "
    "as in SegNet, turns on near-ties",
    "fp16": "use fp32 for this network",
    "int8": "calibrate on more, or more typical, tiles (--calibrate), or let more layers stay in float "
    "(--float-layers)",
}


class Counts:
    """Differences summed over batches."""

    def __init__(self, classes: int, threshold: float | None = None) -> None:
        """Start at zero.

        Args:
            classes: Their number.
            threshold: As in `Expected`.
        """
        self._threshold = threshold
        self.max_abs = self.sum_abs = 0.0
        self.values = self.off = self.pixels = self.same = 0
        self._classes = classes
        empty = np.zeros((classes, classes), np.int64)
        self._labels, self._found_truth, self._source_truth = empty, empty.copy(), empty.copy()
        self._has_truth = False

    def add(self, expected: Floats, found: Floats, truth: Labels | None = None) -> None:
        """Count a batch of `(n, height, width, classes)` probabilities, `(n, height, width)` truth."""
        difference = np.abs(expected - found)
        self.max_abs = float(np.maximum(self.max_abs, difference.max()))  # keeps a NaN, unlike max()
        self.sum_abs += float(difference.sum(dtype=np.float64))
        self.values += difference.size
        self.off += int((~(difference <= TOLERANCE)).sum())  # a NaN is off
        labels, found_labels = (choose_labels(values, self._threshold) for values in (expected, found))
        self.pixels += labels.size
        self.same += int((labels == found_labels).sum())
        self._labels += self._count(labels, found_labels)
        if truth is not None:
            known = truth != NO_CLASS
            self._has_truth = True
            self._found_truth += self._count(truth[known], found_labels[known])
            self._source_truth += self._count(truth[known], labels[known])

    def describe_classes(self, names: tuple[str, ...]) -> tuple[ClassDice, ...]:
        """Return the Dice of each class."""
        maps = _dice(self._labels), _dice(self._found_truth), _dice(self._source_truth)
        rows = zip(names, *maps, self._shares(), strict=True)
        return tuple(
            ClassDice(name, dice, found, source, share)
            if self._has_truth
            else ClassDice(name, dice, None, None, share)
            for name, dice, found, source, share in rows
        )

    def _shares(self) -> list[float]:
        counts = self._source_truth if self._has_truth else self._labels
        sizes = (counts.sum(axis=0) + counts.sum(axis=1)) / 2
        return [float(size) for size in sizes / max(counts.sum(), 1)]

    def _count(self, rows: Labels, columns: Labels) -> NDArray[np.int64]:
        return count_confusion(rows, columns, classes=self._classes)


def _dice(counts: NDArray[np.int64]) -> list[float | None]:
    """Return twice the overlap by the sum of both areas, for each class."""
    totals = counts.sum(axis=0) + counts.sum(axis=1)
    pairs = zip(np.diag(counts), totals, strict=True)
    return [float(2 * overlap / total) if total else None for overlap, total in pairs]


def iter_batches(count: int) -> Iterator[slice]:
    """Yield slices of at most `BATCH`."""
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))


def run_singly(run: Callable[[Pixels], Floats], tiles: Pixels) -> Floats:
    """Run tile after tile: many large ones at once would not fit into memory."""
    return np.concatenate([run(np.ascontiguousarray(tile[None])) for tile in tiles])


def middle_ms(seconds: list[float]) -> float:
    """Return the median in milliseconds; the first batch, which warms up, counts only when it is alone."""
    return round(1000 * median(seconds[1:] or seconds), 2)
