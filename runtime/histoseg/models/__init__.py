"""The model that ships with the package."""

from __future__ import annotations

from pathlib import Path


def default_model() -> Path:
    """Return the path of the default model: nuclei on H&E at 0.5 um/px. Research use only."""
    return Path(__file__).with_name("nuclei.onnx")
