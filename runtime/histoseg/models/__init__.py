"""The models that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from histoseg.cpu import INT8_DOT_PRODUCTS, read_int8_instructions
from histoseg.providers import find_key, installed_wheels

# By wheel, the provider that `auto` comes to on every machine that has it; `onnxruntime-gpu` may find a GPU.
_AUTO = {"onnxruntime": "cpu", "onnxruntime-openvino": "openvino"}
_INT8_PROVIDERS = ("cpu", "openvino")


def default_model(precision: Literal["fp32", "int8"] = "fp32") -> Path:
    """Return the path of the default model: nuclei on H&E at 0.5 um/px. Research use only."""
    suffix = "" if precision == "fp32" else f".{precision}"
    return Path(__file__).with_name(f"nuclei{suffix}.onnx")


def choose_default_model(provider: str = "auto") -> Path:
    """Return the path of the default model in the precision that runs best here.

    int8 where a CPU with dot products of int8 runs it, fp32 elsewhere. onnxruntime is not imported.

    Args:
        provider: As for `open_session`.
    """
    key = find_key(provider)
    if key == "auto":
        wheels = list(installed_wheels())
        key = _AUTO.get(wheels[0], "") if len(wheels) == 1 else ""
    fast = (read_int8_instructions() or frozenset()) & INT8_DOT_PRODUCTS
    return default_model("int8" if key in _INT8_PROVIDERS and fast else "fp32")


def probe_model() -> Path:
    """Return the path of the model of one node that `histoseg-doctor` runs on every provider.

    `tests/data/make_models.py` makes it.
    """
    return Path(__file__).with_name("probe.onnx")
