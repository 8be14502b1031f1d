"""Read what Keras 3 saved with Keras 3: uncompiled, in safe mode, after its configuration was vetted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from histoseg_export.loaders.cleaning import (
    Cleaner,
    note_precision,
    refuse_other_generation,
    write_cleaned,
)
from histoseg_export.loaders.source import CannotReadError, LoadedModel, LoadOptions, Source
from histoseg_export.loaders.userfile import read_names
from histoseg_export.loaders.vetting import vet_config
from histoseg_train.kerasfile import KERAS_3, summarize_error


def load_with_keras(source: Source, options: LoadOptions) -> LoadedModel:
    """Load a whole model.

    Raises:
        ModelError: It would run code, needs what Keras lacks, or cannot be read; the message names which.
    """
    import keras

    assert source.config is not None
    names = read_names(options.custom_objects) if options.custom_objects else {}
    cleaned = Cleaner(KERAS_3, names, _make_layer, bare_functions=False).clean(source.config)
    vet_config(source, cleaned, KERAS_3)
    refuse_other_generation(cleaned, _tf_keras_layer(), f"Keras {keras.__version__}", "keras")
    with tempfile.TemporaryDirectory() as folder:
        path = write_cleaned(source, cleaned.config, Path(folder))
        try:
            model = keras.saving.load_model(
                path, custom_objects=cleaned.custom_objects, compile=False, safe_mode=True
            )
        except Exception as error:  # Keras lets any exception of a layer through
            raise CannotReadError(f"Keras {keras.__version__}", summarize_error(error)) from error
    notes = note_precision(cleaned)
    if source.generation == 2:
        notes += (f"saved by {source.saved_by} but read by Keras {keras.__version__}, of another generation",)
    return LoadedModel(model, f"Keras {keras.__version__}", notes)


def _tf_keras_layer() -> type:
    """Return the layer class of `tf_keras`, which nobody's file can need where it is not installed."""
    try:
        import tf_keras
    except ImportError:
        return type("Nothing", (), {})
    layer: type = tf_keras.layers.Layer
    return layer


def _make_layer(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> type:
    import keras

    class Replacement(keras.layers.Layer):  # type: ignore[misc]
        """A function of the caller's, in place of a Lambda layer."""

        def call(self, inputs: Any) -> Any:
            """Apply the function."""
            return function(inputs, **arguments)

    Replacement.__name__ = Replacement.__qualname__ = name
    return Replacement
