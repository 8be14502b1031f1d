"""Run Keras tissue-segmentation models, exported to ONNX, on whole-slide images. Research use only.

    import histoseg

    with histoseg.Segmenter("model.onnx") as segmenter:
        report = segmenter.segment("slide.svs", "results")

Nothing heavy loads with the package: onnxruntime, OpenCV and OpenSlide come with their first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoseg.card import ModelCard as ModelCard
    from histoseg.errors import HistosegError as HistosegError
    from histoseg.live import LiveSlide as LiveSlide
    from histoseg.options import RunOptions as RunOptions
    from histoseg.segmenter import LabelBand as LabelBand
    from histoseg.segmenter import Segmenter as Segmenter
    from histoseg.slide import open_slide as open_slide

__version__ = "0.1.0"

_ROOMS = {
    "HistosegError": "errors",
    "LabelBand": "segmenter",
    "LiveSlide": "live",
    "ModelCard": "card",
    "RunOptions": "options",
    "Segmenter": "segmenter",
    "open_slide": "slide",
}
__all__ = [
    "HistosegError",
    "LabelBand",
    "LiveSlide",
    "ModelCard",
    "RunOptions",
    "Segmenter",
    "__version__",
    "open_slide",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its room when it is first asked for (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'histoseg' has no attribute '{name}'")
    return getattr(import_module(f"histoseg.{_ROOMS[name]}"), name)
