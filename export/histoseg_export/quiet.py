"""Keep TensorFlow quiet, and on the CPU: its start-up messages tell the person exporting nothing."""

from __future__ import annotations

import logging
import os

from histoseg.errors import ModelError
from histoseg_train.quiet import silence_stderr

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # parity is judged on the CPU, where float32 means float32
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def prepare_environment() -> None:
    """Set this process's environment before TensorFlow loads: for command lines, not for libraries."""
    os.environ.update(_ENVIRONMENT)


def import_tensorflow() -> None:
    """Import TensorFlow, Keras and tf2onnx without a word on the terminal.

    Raises:
        ModelError: One of them is not installed.
    """
    try:
        with silence_stderr():
            import keras  # noqa: F401
            import tensorflow as tf
            import tf2onnx  # noqa: F401

            tf.constant(0)  # the device search prints, too
    except ImportError as error:
        raise ModelError(
            f"Keras models need TensorFlow, Keras and tf2onnx ({error}); "
            "install histoseg again with its extra [export]"
        ) from error
    for name in ("absl", "tensorflow", "tf2onnx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
