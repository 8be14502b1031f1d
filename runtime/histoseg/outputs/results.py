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
from histoseg.outputs import LabelSink
from histoseg.outputs import objects as objects_room
from histoseg.outputs.labels import LabelPyramid
from histoseg.outputs.objects import Objects
from histoseg.outputs.overlay import Overlay

if TYPE_CHECKING:
    from histoseg.arrays import Labels
    from histoseg.card import ModelCard
    from histoseg.options import RunOptions
    from histoseg.outputs.report import Glance
    from histoseg.scale import ScaledSlide
    from histoseg.timing import Stopwatch

FILE_NAMES = ("labels.tif", "overlay.png", objects_room.FILE_NAME)


class Results:
    """The files of labels in a folder. A context manager: leaving it closes what is open."""

    def __init__(
        self,
        folder: Path,
        slide: ScaledSlide,
        card: ModelCard,
        options: RunOptions,
        *,
        clock: Stopwatch,
        cancel: Event | None = None,
    ) -> None:
        """Begin them.

        Args:
            folder: Where they are written.
            slide: What is segmented.
            card: Classes and their colours.
            options: Which files, and how.
            clock: Gets the seconds of `write`.
            cancel: Once it is set, writing stops.
        """
        self._clock, self._cancel, self._stack = clock, cancel, ExitStack()
        size, spacing = slide.m_size, slide.scale.spacing_um_px
        pyramid = LabelPyramid(folder / "labels.tif", size, spacing, card.class_colors)
        self._overlay = Overlay(
            folder / "overlay.png", slide.slide, size, card.class_colors, card.background_index, cancel=cancel
        )
        self._sinks: list[LabelSink] = [self._stack.enter_context(pyramid), self._overlay]
        self._objects = self._open_objects(folder, slide, card, options) if options.objects else None
        if isinstance(slide.slide, LiveSlide):
            self._sinks.append(LivePicture(slide.slide, slide, self._overlay.overview))

    def __enter__(self) -> Self:
        """Return the results themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        self._stack.close()

    def write(self, rows: Iterator[tuple[int, Labels]]) -> None:
        """Write all labels of the slide: first row and `(rows, width)` of each band, from top to bottom.

        Raises:
            CancelledError: The run was cancelled.
            OutputError: A file cannot be written.
            SlideError: The slide is damaged.
        """
        for m_y, labels in rows:
            check_cancel(self._cancel, "labels were written")
            with self._clock.time("write"):
                for sink in self._sinks:
                    sink.add(m_y, labels)
        with self._clock.time("write"):
            for sink in self._sinks:
                check_cancel(self._cancel, "labels were written")
                sink.close()

    def report(self) -> dict[str, Any]:
        """Return what is to be said of them; complete once all is written."""
        return {"objects": self._objects.report() if self._objects else None}

    def glance(self) -> Glance:
        """Return slide and labels at a size to look at; complete once all is written."""
        return self._overlay.glance()

    def _open_objects(
        self, folder: Path, slide: ScaledSlide, card: ModelCard, options: RunOptions
    ) -> Objects:
        objects = Objects(
            folder / objects_room.FILE_NAME,
            slide.slide.name,
            slide.scale,
            card,
            min_area_um2=options.min_area_um2,
            simplify=options.simplify,
        )
        self._sinks.append(self._stack.enter_context(objects))
        return objects
