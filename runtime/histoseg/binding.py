"""Runs an onnxruntime session on buffers that stay on the device and are used again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """Where the tensors of a session live, and what they look like."""

    device: str
    """As onnxruntime names it: `cpu`, `cuda`."""
    input_name: str
    output_name: str
    output_dtype: str
    find_output_shape: Callable[[Shape], Shape]
    """Returns the output's shape for an input's."""


@dataclass(frozen=True)
class _Buffers:
    shape: Shape
    input: Any
    output: Any
    binding: Any


class BoundRunner:
    """Calls a session through an IOBinding: one copy to the device, one back, nothing allocated there.

    Safe from several threads: each call takes a set of buffers that no other call is using, and gives it
    back, so that there are as many sets as there ever were calls at one time.

    Source: onnxruntime.ai/docs/performance/tune-performance/iobinding.html
    """

    def __init__(self, ort: Any, session: Any, binding: Binding) -> None:
        """Bind nothing yet; the first call knows the shape."""
        self._ort = ort
        self._session = session
        self._what = binding
        self._idle: list[_Buffers] = []

    def __call__(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return the output for an input tensor, as an array of its own that later calls leave alone.

        Raises:
            RuntimeError: onnxruntime failed, or the output has another shape than was foreseen.
        """
        buffers = self._take(tensor)
        buffers.input.update_inplace(tensor)
        # the copies and the model may run on different streams of the device
        buffers.binding.synchronize_inputs()
        self._session.run_with_iobinding(buffers.binding)
        buffers.binding.synchronize_outputs()
        # not OrtValue.numpy(), which on the CPU is the buffer itself
        result: NDArray[Any] = buffers.binding.copy_outputs_to_cpu()[0]
        self._idle.append(buffers)
        return result

    def _take(self, tensor: NDArray[Any]) -> _Buffers:
        """Return idle buffers for a tensor, or new ones; those of another shape are let go."""
        while self._idle:
            try:
                buffers = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if buffers.shape == tensor.shape:
                return buffers
        return self._allocate(tensor)

    def _allocate(self, tensor: NDArray[Any]) -> _Buffers:
        what, allocate = self._what, self._ort.OrtValue.ortvalue_from_shape_and_type
        source = allocate(tensor.shape, tensor.dtype.type, what.device)
        target = allocate(what.find_output_shape(tensor.shape), np.dtype(what.output_dtype).type, what.device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(what.input_name, source)
        binding.bind_ortvalue_output(what.output_name, target)
        return _Buffers(tensor.shape, source, target, binding)
