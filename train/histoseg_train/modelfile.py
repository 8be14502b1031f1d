"""Saving a model with its metadata, whole or not at all, and loading it again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from histoseg.atomic import write_whole
from histoseg.errors import DataError, ModelError, OutputError
from histoseg_train.kerasfile import check_file
from histoseg_train.metadata import KerasMetadata, write_metadata


def save_model(model: Any, path: Path, metadata: KerasMetadata) -> None:
    """Write an uncompiled model and its metadata as `.keras` or `.h5`, by the suffix of `path`.

    Raises:
        DataError: A weight is NaN or infinite.
        OutputError: The file cannot be written; what was there before remains.
    """
    if not all(np.isfinite(values).all() for values in model.get_weights()):
        raise DataError("the weights are no longer finite numbers; lower --learning-rate")
    try:
        with write_whole(path, suffix=path.suffix) as part:
            with _quiet_h5_warning():
                model.save(part)
            write_metadata(part, metadata)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the model: {error}") from error


def load_model(path: Path) -> Any:
    """Load a `.keras` or `.h5` model for inference; code inside the file is refused, not executed.

    Raises:
        ModelError: The file cannot be loaded, or would run code.
    """
    check_file(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: Keras {keras.__version__} cannot load it: {reason}") from error


@contextmanager
def _quiet_h5_warning() -> Iterator[None]:
    # Keras calls .h5 "legacy" on every save; here it was asked for
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
