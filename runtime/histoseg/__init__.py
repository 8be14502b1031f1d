"""Run Keras tissue-segmentation models, exported to ONNX, on whole-slide images. Research use only.

    import histoseg

    with histoseg.open_session("model.onnx") as session:
        report = histoseg.segment_slide("slide.svs", session, "results")

Nothing heavy loads with the package: onnxruntime, OpenCV and OpenSlide come with their first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoseg.card import ModelCard as ModelCard
    from histoseg.errors import HistosegError as HistosegError
    from histoseg.job import segment_slide as segment_slide
    from histoseg.options import RunOptions as RunOptions
    from histoseg.session import Session as Session
    from histoseg.session import open_session as open_session
    from histoseg.slide import open_slide as open_slide

__version__ = "0.1.0"

_ROOMS = {
    "HistosegError": "errors",
    "ModelCard": "card",
    "RunOptions": "options",
    "Session": "session",
    "open_session": "session",
    "open_slide": "slide",
    "segment_slide": "job",
}
__all__ = [
    "HistosegError",
    "ModelCard",
    "RunOptions",
    "Session",
    "__version__",
    "open_session",
    "open_slide",
    "segment_slide",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its room when it is first asked for (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'histoseg' has no attribute '{name}'")
    return getattr(import_module(f"histoseg.{_ROOMS[name]}"), name)
