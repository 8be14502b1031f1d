"""Refuse a configuration that would run code, or needs what Keras lacks; say what the caller can write."""

from __future__ import annotations

import json

from histoseg.errors import ModelError
from histoseg_export.loaders.cleaning import Cleaned, extend_vocabulary
from histoseg_export.loaders.source import Source, advise_newer
from histoseg_export.loaders.userfile import to_identifier
from histoseg_train.kerasfile import Vocabulary, find_code, refuse_code

GIVE = "in a Python file, and give it with --custom-objects FILE.py"
OR_EXPORT = ", or save the model as a SavedModel in the program that made it"
_LISTED = 6
_QUANTIZED = ("QuantizationConfig", "QuantizedDTypePolicy", "QuantizedFloat8DTypePolicy")


def vet_config(source: Source, cleaned: Cleaned, vocabulary: Vocabulary) -> None:
    """Refuse what would run code from the file, or is neither Keras's nor the caller's.

    Raises:
        ModelError: The message names the layers, and the functions to write in their place.
    """
    if any(word in json.dumps(cleaned.config) for word in _QUANTIZED):
        raise ModelError(
            f"{source.path}: its weights are quantised by Keras, expected floating-point ones; "
            "save the model as it was before quantize()"
        )
    names = [f"{to_identifier(layer)}(x)" for layer, _ in find_code(cleaned.config)]
    words = ", ".join(names[:_LISTED] + ["..."] * (len(names) > _LISTED))
    refuse_code(
        source.path,
        cleaned.config,
        vocabulary=extend_vocabulary(vocabulary, cleaned.custom_objects),
        code_remedy=f"write what each does as {words} {GIVE}{OR_EXPORT}",
        class_remedy=f"define each by its name {GIVE}{OR_EXPORT}{advise_newer(source)}",
    )
