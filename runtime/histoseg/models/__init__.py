"""The models that ship with the package."""

from __future__ import annotations

from pathlib import Path


def default_model() -> Path:
    """Return the path of the default model: nuclei on H&E at 0.5 um/px. Research use only."""
    return Path(__file__).with_name("nuclei.onnx")


def probe_model() -> Path:
    """Return the path of the model of one node that `histoseg-doctor` runs on every provider.

    `tests/data/make_models.py` makes it.
    """
    return Path(__file__).with_name("probe.onnx")
