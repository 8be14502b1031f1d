"""Load a Keras model of any age, or refuse it in one line that names the reason. Code from a file never runs.

The file is read as data first: its kind, and its layers' configuration. Keras sees only what passed. One
list of strategies, tried in its order, says who reads what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from histoseg.errors import ModelError
from histoseg_export.anykeras import (
    CHANNELS_LAST,
    image_size,
    is_channels_first,
    iter_tensors,
    keras_of,
    maker_of,
    words_of,
)
from histoseg_export.loaders.flat import explain_flat
from histoseg_export.loaders.keras3 import load_with_keras
from histoseg_export.loaders.savedmodel import load_saved_model
from histoseg_export.loaders.source import (
    CannotReadError,
    LoadedModel,
    LoadOptions,
    Source,
    advise_newer,
    read_source,
)
from histoseg_export.loaders.tfkeras import load_with_tf_keras
from histoseg_export.loaders.weights import load_weights
from histoseg_export.quiet import import_tensorflow

__all__ = ["STRATEGIES", "LoadOptions", "LoadedModel", "Strategy", "load_model"]


@dataclass(frozen=True)
class Strategy:
    """One way to make a network of a file."""

    name: str
    accepts: Callable[[Source, LoadOptions], bool]
    load: Callable[[Source, LoadOptions], LoadedModel]


def _wants_weights(source: Source, options: LoadOptions) -> bool:
    return source.config is None or bool(options.builder or options.architecture)


STRATEGIES = (
    Strategy("SavedModel", lambda source, options: source.kind == "savedmodel", load_saved_model),
    Strategy("weights", _wants_weights, load_weights),
    # its own generation first: Keras 3 gives some layers of Keras 2 another meaning
    Strategy("tf_keras", lambda source, options: source.generation in (1, 2), load_with_tf_keras),
    Strategy("Keras 3", lambda source, options: source.generation != 1, load_with_keras),
)


def load_model(path: Path, options: LoadOptions | None = None) -> LoadedModel:
    """Load a model for inference.

    Args:
        path: A `.keras` archive, an HDF5 file of a whole model or of weights, or a SavedModel folder.
        options: What the caller says about it.

    Returns:
        The model, one 4-D channels-last input and one 4-D output, and how it was read.

    Raises:
        ModelError: The file is missing, truncated, no Keras model, holds Python code or foreign classes, or
            is no segmentation model; the message names which.
        OptionError: An option does not fit the file, or a file of the caller's cannot be used.
    """
    options = options or LoadOptions()
    source = read_source(path)  # before TensorFlow, which takes seconds: many files are refused here
    import_tensorflow()
    loaded = _load_first(source, options)
    # a SavedModel's graph was cut to one output already
    output = None if source.kind == "savedmodel" else options.output
    model = choose_output(path, loaded.model, output)
    check_segmentation(path, model)
    check_weights(path, model)
    notes = loaded.notes
    if output is not None and output not in _name_outputs(loaded.model):
        notes += (f"the network ends at its layer '{output}': what follows in the file is left out",)
    if is_channels_first(model):
        model = _to_channels_last(model)
        notes += ("the network keeps channels first: images are transposed on its way in and out",)
    return replace(loaded, model=model, notes=notes)


def choose_output(path: Path, model: Any, name: str | None) -> Any:
    """Return a model with one tensor in and one out.

    Args:
        path: The file, for the message.
        model: What was loaded.
        name: An output, or a layer whose result becomes the output; `None` where there is but one.

    Raises:
        ModelError: There are several inputs, several outputs and no name, or nothing of that name.
    """
    if not getattr(model, "inputs", None) or not model.outputs:
        raise ModelError(
            f"{path}: does not say the shape of its images, expected a network with an Input; "
            "build it with --builder FILE.py:FUNCTION"
        )
    if len(model.inputs) != 1:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise ModelError(f"{path}: has {len(model.inputs)} inputs ({names}), expected one, the image")
    outputs = _name_outputs(model)
    words = ", ".join(f"'{key}' {words_of(tensor.shape)}" for key, tensor in outputs.items())
    if name is None and len(outputs) > 1:
        raise ModelError(
            f"{path}: has {len(outputs)} outputs ({words}), expected one; choose it with --output NAME"
        )
    chosen = next(iter(outputs.values())) if name is None else outputs.get(name)
    if chosen is None:
        chosen = _find_result(model, name)
    if chosen is None:
        raise ModelError(f"{path}: has no output or layer '{name}' with one result, expected one of {words}")
    return keras_of(model).Model(model.inputs[0], chosen, name=model.name)


def _find_result(model: Any, name: str | None) -> Any:
    """Return the one tensor that a layer gives on the way to an output; `None` without, or of several."""
    found = [tensor for tensor in iter_tensors(model) if maker_of(tensor).name == name]
    return found[0] if len(found) == 1 else None


def _name_outputs(model: Any) -> dict[str, Any]:
    """Return a model's outputs by the names that its author gave them: keys, or else names of layers."""
    given = getattr(model, "output", None)
    if isinstance(given, dict) and all(hasattr(tensor, "shape") for tensor in given.values()):
        return dict(given)
    keys = getattr(model, "output_names", None) or [maker_of(tensor).name for tensor in model.outputs]
    return dict(zip(keys, model.outputs, strict=True))


def check_segmentation(path: Path, model: Any) -> None:
    """Refuse a model that does not map one image to one map.

    Raises:
        ModelError: The input is no image of 1 or 3 channels, or the output is no map; the message says what
            they are.
    """
    shape, found = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if len(shape) != 4:
        kind = {2: "vectors", 3: "sequences", 5: "volumes"}.get(len(shape), "something else")
        raise ModelError(
            f"{path}: its input has shape {words_of(shape)}: it takes {kind}, expected images, "
            "(batch, height, width, channels)"
        )
    if 3 not in (shape[1], shape[3]) and 1 not in (shape[1], shape[3]):
        raise ModelError(
            f"{path}: its input has shape {words_of(shape)}, expected 3 channels (RGB) or 1 (grey)"
        )
    if len(found) != 4:
        raise ModelError(f"{path}: its output has shape {words_of(found)}: {explain_flat(model)}")
    if found[1 if _gives_channels_first(model) else 3] is None:
        raise ModelError(f"{path}: its output has an unknown number of channels, expected one for each class")


def check_weights(path: Path, model: Any) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: The message names the first such variable.
    """
    for variable, values in zip(model.weights, model.get_weights(), strict=True):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            name = getattr(variable, "path", variable.name)
            raise ModelError(
                f"{path}: its '{name}' holds NaN or infinite values; training diverged, train it again"
            )


def _load_first(source: Source, options: LoadOptions) -> LoadedModel:
    """Return what the first strategy that can read the file makes of it."""
    refusals = []
    for strategy in STRATEGIES:
        if strategy.accepts(source, options):
            try:
                return strategy.load(source, options)
            except CannotReadError as error:
                refusals.append(str(error))
    raise ModelError(
        f"{source.path}: saved by {source.saved_by}; {'; '.join(refusals)}{advise_newer(source)}"
    )


def _gives_channels_first(model: Any) -> bool:
    """Tell whether the output of a model, whose input keeps its channels first, does so, too."""
    size, shape = image_size(model), tuple(model.outputs[0].shape[1:])
    return is_channels_first(model) and (shape[1:] == size or shape[:2] != size)


def _to_channels_last(model: Any) -> Any:
    """Return a channels-first model between two transpositions; one, where it ends channels last."""
    module = keras_of(model)
    _, channels, height, width = model.inputs[0].shape
    image = module.Input((height, width, channels))
    result = model(module.layers.Permute((3, 1, 2), name="to_channels_first")(image))
    if _gives_channels_first(model):
        result = module.layers.Permute((2, 3, 1), name=CHANNELS_LAST)(result)
    return module.Model(image, result, name=model.name)
