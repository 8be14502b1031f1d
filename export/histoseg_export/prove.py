"""Prove that the ONNX file behaves like the Keras model, on real tiles, or refuse it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import ModelError, ParityError
from histoseg_export.convert import to_reference_input

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels
    from histoseg.session import Session
    from histoseg_export.describe import Description

MIN_LABEL_AGREEMENT = 0.9999
MAX_ABS = 1e-4
BATCH = 4


@dataclass(frozen=True)
class ClassDice:
    """How well the two label maps overlap in one class; `None` where neither has it."""

    name: str
    dice: float | None


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from its Keras model."""

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

    @property
    def passed(self) -> bool:
        """Whether the gate lets it through; a NaN does not pass."""
        return self.label_agreement >= MIN_LABEL_AGREEMENT and self.max_abs <= MAX_ABS

    def to_json(self) -> dict[str, Any]:
        """Return the figures, and the gate they passed, for card and report."""
        gate = {"min_label_agreement": MIN_LABEL_AGREEMENT, "max_abs": MAX_ABS}
        return {**asdict(self), "tile_px": list(self.tile_px), "gate": gate}


def prove(model: Any, session: Session, tiles: Pixels, *, description: Description, source: str) -> Parity:
    """Compare Keras and ONNX on tiles.

    Args:
        model: The `keras.Model` as loaded.
        session: The ONNX file, open on onnxruntime's CPU provider.
        tiles: `(n, height, width, 3)` uint8 RGB.
        description: What the model is.
        source: Where the tiles came from, in words.

    Returns:
        The figures, whether or not they pass.

    Raises:
        ModelError: The model's outputs are not what its activation promises.
    """
    counts = _Counts(len(description.class_names))
    for start in range(0, len(tiles), BATCH):
        batch = tiles[start : start + BATCH]
        counts.add(predict_reference(model, batch, description), session.run(batch))
    classes = tuple(
        ClassDice(name, dice) for name, dice in zip(description.class_names, counts.dice(), strict=True)
    )
    return Parity(
        reference="keras",
        source=source,
        tiles=len(tiles),
        tile_px=description.tile,
        max_abs=counts.max_abs,
        mean_abs=counts.sum_abs / counts.values,
        label_agreement=counts.same / counts.pixels,
        differing_pixels=counts.pixels - counts.same,
        classes=classes,
    )


def require_parity(parity: Parity, name: str) -> None:
    """Refuse an export that differs from its source.

    Raises:
        ParityError: The message holds the figures and the gate.
    """
    if not parity.passed:
        raise ParityError(
            f"the ONNX file does not behave like {name}: labels agree on {parity.label_agreement:.4%} of "
            f"pixels (needed {MIN_LABEL_AGREEMENT:.2%}), probabilities differ by up to {parity.max_abs:.2g} "
            f"(allowed {MAX_ABS:.0e}); nothing was written"
        )


def predict_reference(model: Any, tiles: Pixels, description: Description) -> Floats:
    """Return the Keras model's probabilities, `(n, height, width, classes)` float32.

    Raises:
        ModelError: The outputs are not what the activation promises.
    """
    inputs = to_reference_input(tiles, description, int(model.inputs[0].shape[3]))
    values: Floats = np.asarray(model.predict(inputs, batch_size=len(inputs), verbose=0), np.float32)
    if description.activation == "logits":
        values = _activate(values)
    else:
        _check_promise(values, description)
    return np.concatenate([1 - values, values], axis=-1) if values.shape[-1] == 1 else values


class _Counts:
    """Differences summed over batches."""

    def __init__(self, classes: int) -> None:
        self.max_abs = self.sum_abs = 0.0
        self.values = self.pixels = self.same = 0
        self._overlap = np.zeros(classes, np.int64)
        self._total = np.zeros(classes, np.int64)

    def add(self, reference: Floats, found: Floats) -> None:
        """Count one batch of `(n, height, width, classes)` probabilities."""
        difference = np.abs(reference - found)
        self.max_abs = float(np.maximum(self.max_abs, difference.max()))  # keeps a NaN, unlike max()
        self.sum_abs += float(difference.sum(dtype=np.float64))
        self.values += difference.size
        labels, found_labels = reference.argmax(-1), found.argmax(-1)
        self.pixels += labels.size
        self.same += int((labels == found_labels).sum())
        for index in range(len(self._overlap)):
            mine, theirs = labels == index, found_labels == index
            self._overlap[index] += (mine & theirs).sum()
            self._total[index] += mine.sum() + theirs.sum()

    def dice(self) -> list[float | None]:
        """Return twice the overlap by the sum of both areas, for each class."""
        pairs = zip(self._overlap, self._total, strict=True)
        return [float(2 * overlap / total) if total else None for overlap, total in pairs]


def _activate(logits: Floats) -> Floats:
    if logits.shape[-1] == 1:
        values = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return np.asarray(values, np.float32)
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _check_promise(values: Floats, description: Description) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ModelError(
            f"the model's outputs run from {low:.3g} to {high:.3g}, expected 0 to 1 after "
            f"{description.activation}; say what they are with --activation"
        )
    sums = values.sum(axis=-1)
    if description.activation == "softmax" and float(np.abs(sums - 1).max()) > 1e-3:
        raise ModelError(
            f"the model's outputs sum to {sums.min():.3g} to {sums.max():.3g} at a pixel, expected 1 "
            "after softmax; say what they are with --activation"
        )
