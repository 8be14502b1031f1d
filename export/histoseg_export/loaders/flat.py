"""Say what a network gives that ends flat: a map whose rows were joined, labels, or no map at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg_export.anykeras import image_size, is_channels_first, maker_of, source_of, words_of
from histoseg_export.describe import find_activation

if TYPE_CHECKING:
    from numpy.typing import NDArray

# layers that give the values they are given in another shape; and those that may be a last activation
_JOINING = frozenset({"Dropout", "Flatten", "Permute", "Reshape"})
_REARRANGING = _JOINING | {"Activation", "Softmax"}
_ANY_SIDES = (5, 7, 3)  # of a map whose sizes are unknown


def explain_flat(model: Any) -> str:
    """Say what a model without a map gives, and where its last map is."""
    expected, result = "expected a map, (batch, height, width, classes)", model.outputs[0]
    size = image_size(model)
    if tuple(result.shape[1:]) == size:
        return f"one value for a pixel, {expected}; {_advise_earlier(model)}"
    first = is_channels_first(model)
    found = _find_map(result, first=first)
    if found is None:
        sides = _find_sides(result.shape, size)
        if sides is None:
            return f"a classifier's, or flat, {expected}: not a segmentation model"
        last = f"Reshape(({sides[0]}, {sides[1]}, classes))"
        return f"a map of which the rows were joined, {expected}; save it with a last {last}"
    words = f"a map of which the rows were joined, {expected}"
    name, shape = maker_of(found).name, words_of(found.shape)
    if tuple(found.shape[2:] if first else found.shape[1:3]) != size:
        return (
            f"{words} of the size of its input; the map before that, '{name}', is {shape}: "
            "build it with --builder FILE.py:FUNCTION, up-sampled and not joined"
        )
    if not _keeps_meaning(found, result, classes=found.shape[1 if first else 3]):
        return f"{words}; build it with --builder FILE.py:FUNCTION, without the Reshape after '{name}'"
    return f"{words}; --output {name} takes the map before that, {shape}"


def _keeps_meaning(found: Any, result: Any, *, classes: int) -> bool:
    """Tell whether the exporter makes of a map what the network makes of it in the end."""
    while result is not found and type(maker_of(result)).__name__ in _JOINING:
        result = source_of(maker_of(result))
    wanted = "sigmoid" if classes == 1 else "softmax"
    return result is found or (find_activation(found), find_activation(result)) == ("logits", wanted)


def _advise_earlier(model: Any) -> str:
    """Say how to get the map that one value for a pixel was made of."""
    tensor = model.outputs[0]
    while tensor is not None and len(tensor.shape) != 4:
        tensor = source_of(maker_of(tensor))
    if tensor is None or tensor is model.inputs[0]:
        return "save it as it was before that value was chosen"
    return f"--output {maker_of(tensor).name} takes the map before that, {words_of(tensor.shape)}"


def _find_map(tensor: Any, *, first: bool) -> Any:
    """Return the map of which a flat output is another arrangement; `None` without one.

    A map of numbers is sent the same way: a `Reshape` that mixes classes with rows is no arrangement.

    Args:
        tensor: The flat output.
        first: Whether maps keep their channels first.
    """
    after: list[Any] = []
    while (layer := maker_of(tensor)).__class__.__name__ in _REARRANGING:
        after.insert(0, layer)
        tensor = source_of(layer)
        if len(tensor.shape) == 4:
            sides = [side or unknown for side, unknown in zip(tensor.shape[1:], _ANY_SIDES, strict=True)]
            numbers = np.arange(math.prod(sides)).reshape(sides)
            plain = np.moveaxis(numbers, 0, -1) if first else numbers
            joined = plain.reshape(-1, plain.shape[-1])
            try:
                result = _rearrange(numbers, after)
            except ValueError:  # a map of any size, made flat for one
                return None
            if any(np.array_equal(result, known) for known in (joined, joined.T, joined.ravel())):
                return tensor
    return None


def _rearrange(values: NDArray[Any], layers: list[Any]) -> NDArray[Any]:
    """Do with one map what layers do with each of a batch."""
    for layer in layers:
        config = layer.get_config()
        if "target_shape" in config:
            values = values.reshape(config["target_shape"])
        elif "dims" in config:
            values = values.transpose([axis - 1 for axis in config["dims"]])
        elif type(layer).__name__ == "Flatten":
            values = values.ravel()
    return values


def _find_sides(shape: Any, size: tuple[int | None, int | None]) -> tuple[int, int] | None:
    """Return height and width of a map, as large as the image or smaller, whose rows were joined."""
    height, width = size
    if len(shape) != 3 or height is None or width is None:
        return None
    sides = [(height // factor, width // factor) for factor in (1, 2, 4, 8, 16)]
    return next((side for side in sides if side[0] * side[1] == shape[1]), None)
