"""All that a run writes of its labels, as one thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from histoseg.cancel import check_cancel
from histoseg.live import LivePicture, LiveSlide
from histoseg.outputs import LabelSink, dicomseg
from histoseg.outputs import objects as objects_room
from histoseg.outputs.labels import LabelPyramid
from histoseg.outputs.objects import Objects
from histoseg.outputs.overlay import Overlay
from histoseg.outputs.probabilities import ProbabilityPyramid

if TYPE_CHECKING:
    from histoseg.finished import Rows
    from histoseg.options import RunOptions
    from histoseg.outputs.report import Glance
    from histoseg.scale import ScaledSlide
    from histoseg.session import Session
    from histoseg.timing import Stopwatch

LABELS_NAME, PROBABILITIES_NAME, OVERLAY_NAME = "labels.tif", "probabilities.tif", "overlay.png"
FILE_NAMES = (LABELS_NAME, PROBABILITIES_NAME, OVERLAY_NAME, objects_room.FILE_NAME, dicomseg.FILE_NAME)


class Results:
    """The files of labels in a folder. A context manager: leaving it closes what is open."""

    def __init__(
        self,
        folder: Path,
        slide: ScaledSlide,
        session: Session,
        options: RunOptions,
        *,
        clock: Stopwatch,
        cancel: Event | None = None,
    ) -> None:
        """Begin them.

        Args:
            folder: Where they are written.
            slide: What is segmented.
            session: The model: its classes and their colours.
            options: Which files, and how.
            clock: Gets the seconds of `write`.
            cancel: Once it is set, writing stops.

        Raises:
            OptionError: What one of them needs is not installed.
            OutputError: A file cannot be written.
            SlideError: The slide lacks what one of them needs.
        """
        self._folder, self._slide, self._card, self._options = folder, slide, session.card, options
        self._clock, self._cancel, self._stack = clock, cancel, ExitStack()
        self._sinks: list[LabelSink] = []
        with ExitStack() as undo:
            undo.enter_context(self._stack)
            self._open_labels()
            self._overlay = self._open_overlay()
            self._objects = self._open_objects() if options.objects else None
            self._probabilities = self._open_probabilities() if options.probabilities else None
            if options.dicom_seg:
                self._open_segmentation(dicomseg.Maker(session.name, session.sha256))
            undo.pop_all()

    def __enter__(self) -> Self:
        """Return the results themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        self._stack.close()

    def write(self, rows: Iterator[Rows]) -> None:
        """Write all rows of the slide, which come over its whole width from top to bottom.

        Raises:
            CancelledError: The run was cancelled.
            OutputError: A file cannot be written.
            SlideError: The slide is damaged.
        """
        for part in rows:
            check_cancel(self._cancel, "labels were written")
            with self._clock.time("write"):
                for sink in self._sinks:
                    sink.add(part.m_y, part.labels)
                if self._probabilities is not None and part.shares is not None:
                    self._probabilities.add(part.m_y, part.shares)
        with self._clock.time("write"):
            for sink in self._sinks:
                check_cancel(self._cancel, "labels were written")
                sink.close()
            if self._probabilities is not None:
                self._probabilities.close()

    def report(self) -> dict[str, Any]:
        """Return what is to be said of them; complete once all is written."""
        return {"objects": self._objects.report() if self._objects else None}

    def glance(self) -> Glance:
        """Return slide and labels at a size to look at; complete once all is written."""
        return self._overlay.glance()

    def _open_labels(self) -> None:
        card, scale = self._card, self._slide.scale
        pyramid = LabelPyramid(
            self._folder / LABELS_NAME, scale.m_size, scale.spacing_um_px, card.class_colors, card.class_names
        )
        self._sinks.append(self._stack.enter_context(pyramid))

    def _open_overlay(self) -> Overlay:
        card, slide = self._card, self._slide.slide
        overlay = Overlay(
            self._folder / OVERLAY_NAME,
            slide,
            self._slide.m_size,
            card.class_colors,
            card.background_index,
            cancel=self._cancel,
        )
        self._sinks.append(overlay)
        if isinstance(slide, LiveSlide):
            self._sinks.append(LivePicture(slide, self._slide, overlay.overview))
        return overlay

    def _open_objects(self) -> Objects:
        objects = Objects(
            self._folder / objects_room.FILE_NAME,
            self._slide.slide.name,
            self._slide.scale,
            self._card,
            min_area_um2=self._options.min_area_um2,
            simplify=self._options.simplify,
        )
        self._sinks.append(self._stack.enter_context(objects))
        return objects

    def _open_probabilities(self) -> ProbabilityPyramid:
        card, scale = self._card, self._slide.scale
        pyramid = ProbabilityPyramid(
            self._folder / PROBABILITIES_NAME,
            scale.m_size,
            scale.spacing_um_px,
            names=card.class_names,
            colors=card.class_colors,
        )
        return self._stack.enter_context(pyramid)

    def _open_segmentation(self, maker: dicomseg.Maker) -> None:
        segmentation = dicomseg.DicomSegmentation(
            self._folder / dicomseg.FILE_NAME, self._slide.slide, self._slide.scale, self._card, maker
        )
        self._sinks.append(self._stack.enter_context(segmentation))
