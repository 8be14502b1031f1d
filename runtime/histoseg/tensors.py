"""Between RGB pixels and a model's tensors: all that the card says is done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import ModelError
from histoseg.transform import apply_transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels
    from histoseg.card import ModelCard

# what rounding in half precision may add to a probability
PROBABILITY_SLACK = 2e-3


def prepare_input(tiles: Pixels, card: ModelCard) -> NDArray[Any]:
    """Return the tensor the card asks for, from `(batch, height, width, 3)` uint8 RGB."""
    values: NDArray[Any] = tiles
    if card.transform or card.input.dtype != "uint8":
        values = apply_transform(tiles, card.transform).astype(card.input.dtype, copy=False)
    if card.input.channel_order == "BGR":
        values = values[..., ::-1]
    if card.input.layout == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values)


def read_output(raw: Any, card: ModelCard, batch: tuple[int, ...]) -> Floats:
    """Return `(batch, height, width, classes)` float32 probabilities from the model's output tensor.

    Raises:
        ModelError: The output has another shape than the card says.
    """
    if card.output.layout == "NCHW" and getattr(raw, "ndim", 0) == 4:
        raw = raw.transpose(0, 2, 3, 1)
    expected = (*batch, card.output.channels)
    if raw.shape != expected:
        raise ModelError(f"the model's output is {raw.shape} (NHWC), expected {expected} from its card")
    values: Floats = raw.astype(np.float32, copy=False)
    if card.output.activation == "logits":
        values = _sigmoid(values) if card.output.channels == 1 else _softmax(values)
    low, high = float(values.min()), float(values.max())
    if not (low >= -PROBABILITY_SLACK and high <= 1 + PROBABILITY_SLACK):  # also when one of them is NaN
        raise ModelError(
            f"the model's output lies between {low:g} and {high:g}, expected probabilities; its card says "
            f"'{card.output.activation}': set output.activation to what the model really gives"
        )
    if card.output.channels == 1:
        values = np.concatenate([1 - values, values], axis=-1)
    return values


def shape_output(card: ModelCard, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the model's output tensor for that of its input tensor, as the card says."""
    batch, *rest = input_shape
    height, width = rest[:2] if card.input.layout == "NHWC" else rest[1:]
    channels = card.output.channels
    if card.output.layout == "NHWC":
        return (batch, height, width, channels)
    return (batch, channels, height, width)


def _sigmoid(logits: Floats) -> Floats:
    # tanh form: never overflows
    result: Floats = np.float32(0.5) * (np.tanh(logits * np.float32(0.5)) + np.float32(1))
    return result


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result
