"""Receptive field: how large a square of the input one output pixel can depend on.

It is found exactly, not by the formula for one path (Araujo, Norris and Sim 2019,
https://distill.pub/2019/computing-receptive-fields/), which does not know how strides round: every tensor of
the network carries, for each of its positions along one axis, the first and the last input pixel it depends
on. Global pooling, which depends on the whole input, is reported apart. What a network really uses is less:
see Luo et al. 2016, https://arxiv.org/abs/1701.04128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Pixels of the axis that is followed: more than any field, and a multiple of any stride.
AXIS_PX = 8192


@dataclass(frozen=True)
class ReceptiveField:
    """How much of the input one output pixel can depend on, global pooling aside."""

    width_px: int
    height_px: int
    is_global: bool
    """Global pooling adds the mean of the whole input."""


@dataclass(frozen=True)
class _Span:
    """First and last input pixel that each position along an axis depends on."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)


# What depends on nothing but the whole input.
_NOTHING = _Span(np.array([AXIS_PX]), np.array([-1]))


def find_receptive_field(model: Any) -> ReceptiveField:
    """Return the receptive field of a functional Keras model from one image to one map of the same size."""
    height, width = (_follow(model, axis) for axis in (0, 1))
    is_global = any(_is_global(operation) for operation in model.operations)
    return ReceptiveField(width, height, is_global)


def _follow(model: Any, axis: int) -> int:
    """Return the most input pixels along an axis that an output depends on."""
    start = np.arange(AXIS_PX)
    spans = {id(model.inputs[0]): _Span(start, start)}
    for operation in model.operations:
        if id(operation.output) in spans:
            continue  # the input layer
        inputs = operation.input if isinstance(operation.input, list | tuple) else [operation.input]
        given = _join([spans[id(tensor)] for tensor in inputs])
        outputs = operation.output if isinstance(operation.output, list | tuple) else [operation.output]
        for tensor, span in zip(outputs, _pass(operation, given, axis), strict=True):
            spans[id(tensor)] = span
    result = spans[id(model.outputs[0])]
    return int((result.last - result.first).max()) + 1


def _pass(operation: Any, given: _Span, axis: int) -> list[_Span]:
    """Return the spans of an operation's outputs."""
    if _is_global(operation):
        return [_NOTHING]
    follow = _FOLLOW.get(type(operation).__name__)
    if len(given) == 1 or follow is None:  # pixel by pixel
        return [given]
    return follow(operation, given, axis)


def _convolve(operation: Any, given: _Span, axis: int) -> list[_Span]:
    size, stride, dilation = (
        getattr(operation, name)[axis] for name in ("kernel_size", "strides", "dilation_rate")
    )
    return [_slide(given, size, stride, dilation=dilation, same=operation.padding == "same")]


def _pool(operation: Any, given: _Span, axis: int) -> list[_Span]:
    size, stride = operation.pool_size[axis], operation.strides[axis]
    return [_slide(given, size, stride, same=operation.padding == "same")]


def _pool_with_mask(_operation: Any, given: _Span, _axis: int) -> list[_Span]:
    pooled = _slide(given, 2, 2)
    return [pooled, _repeat(pooled, 2)]


def _transpose(operation: Any, given: _Span, axis: int) -> list[_Span]:
    return [_spread(given, operation.kernel_size[axis], operation.strides[axis])]


def _enlarge(operation: Any, given: _Span, axis: int) -> list[_Span]:
    enlarge = _repeat if operation.interpolation == "nearest" else _interpolate
    return [enlarge(given, operation.size[axis])]


def _surround(operation: Any, given: _Span, axis: int) -> list[_Span]:
    return [_pad(given, *operation.padding[axis])]


# Keras's operations that look at more than one pixel, by class.
_FOLLOW: dict[str, Callable[[Any, _Span, int], list[_Span]]] = {
    "Conv2D": _convolve,
    "DepthwiseConv2D": _convolve,
    "SeparableConv2D": _convolve,
    "Conv2DTranspose": _transpose,
    "MaxPooling2D": _pool,
    "AveragePooling2D": _pool,
    "MaskedMaxPooling2D": _pool_with_mask,
    "UpSampling2D": _enlarge,
    "ZeroPadding2D": _surround,
}


def _is_global(operation: Any) -> bool:
    return type(operation).__name__ in ("GlobalAveragePooling2D", "GlobalMaxPooling2D")


def _join(spans: list[_Span]) -> _Span:
    first = np.minimum.reduce(np.broadcast_arrays(*(span.first for span in spans)))
    last = np.maximum.reduce(np.broadcast_arrays(*(span.last for span in spans)))
    return _Span(first, last)


def _pad(span: _Span, before: int, after: int) -> _Span:
    """Add positions that depend on nothing."""
    return _Span(
        np.pad(span.first, (before, after), constant_values=AXIS_PX),
        np.pad(span.last, (before, after), constant_values=-1),
    )


def _slide(span: _Span, size: int, stride: int, *, dilation: int = 1, same: bool = False) -> _Span:
    """Slide a window, as a convolution or pooling does."""
    reach = (size - 1) * dilation + 1
    if same:
        lack = max(0, (-(-len(span) // stride) - 1) * stride + reach - len(span))
        span = _pad(span, lack // 2, lack - lack // 2)
    count = (len(span) - reach) // stride + 1
    taps = [slice(tap, tap + (count - 1) * stride + 1, stride) for tap in range(0, reach, dilation)]
    first = np.minimum.reduce([span.first[tap] for tap in taps])
    return _Span(first, np.maximum.reduce([span.last[tap] for tap in taps]))


def _spread(span: _Span, size: int, stride: int) -> _Span:
    """Spread every position over a window, as a transposed convolution with padding `same` does."""
    reach = (len(span) - 1) * stride + size
    first, last = np.full(reach, AXIS_PX), np.full(reach, -1)
    for tap in range(size):
        place = slice(tap, tap + (len(span) - 1) * stride + 1, stride)
        first[place] = np.minimum(first[place], span.first)
        last[place] = np.maximum(last[place], span.last)
    rim = max(0, size - stride) // 2
    length = len(span) * stride
    return _Span(first[rim : rim + length], last[rim : rim + length])


def _repeat(span: _Span, factor: int) -> _Span:
    return _Span(np.repeat(span.first, factor), np.repeat(span.last, factor))


def _interpolate(span: _Span, factor: int) -> _Span:
    """Mix the two positions whose centres lie around each new one."""
    place = (np.arange(len(span) * factor) + 0.5) / factor - 0.5
    low = np.clip(np.floor(place), 0, len(span) - 1).astype(int)
    high = np.clip(np.ceil(place), 0, len(span) - 1).astype(int)
    return _Span(np.minimum(span.first[low], span.first[high]), np.maximum(span.last[low], span.last[high]))
