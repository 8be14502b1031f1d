"""The library: a model that is ready to segment slides inside another program.

Nothing here prints, installs a signal handler, keeps a global, opens a socket, or writes a file that was not
asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, RLock, Thread, current_thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np

from histoseg.cancel import Stop, name_stop
from histoseg.engine import iter_rows
from histoseg.errors import ModelError
from histoseg.job import segment_slide
from histoseg.labeller import Labeller
from histoseg.opening import OpenRun, open_run
from histoseg.options import RunOptions, check_options
from histoseg.session import Session, open_session
from histoseg.timing import Stopwatch

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Labels
    from histoseg.blend import Band
    from histoseg.card import ModelCard
    from histoseg.progress import RunProgress
    from histoseg.slide import Slide

Progress = Callable[[int, int, float], None]
"""Called with tiles done, tiles known and seconds since the run began, by the thread that takes results."""


@dataclass(frozen=True)
class LabelBand:
    """Finished rows of a slide: no later tile changes them."""

    labels: Labels
    """Class indices, `(rows, columns)` uint8."""
    probabilities: Floats | None
    """`(rows, columns, classes)` float32, 0 where nothing ran; `None` unless they were asked for."""
    m_x: int
    """First column, in model pixels: 0, unless the slide is run in panels."""
    m_y: int
    """First row, in model pixels."""
    l0_box: tuple[float, float, float, float]
    """`(x0, y0, x1, y1)` in level-0 pixels, inside the slide."""


class Segmenter:
    """An open model and how to run it. Safe from any number of threads, each with runs of its own.

    Leaving it as a context manager, or `close`, stops what still runs, as if it had been cancelled, waits
    until its threads have ended, and releases the model.
    """

    def __init__(
        self,
        model: str | Path | Session,
        *,
        provider: str = "auto",
        options: RunOptions | None = None,
        card: str | Path | None = None,
        threads: int | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: An `.onnx` file; or a session from `histoseg.session.open_session`, which several
                segmenters may share, with options of their own, and which stays open.
            provider: `auto`, `cpu`, `cuda`, ...: used or refused, never replaced; see `open_session`.
            options: See `RunOptions`; what the model's card says when `None`.
            card: A sidecar that describes the model instead.
            threads: CPU threads for the operators; when `None`, all that this process may use.

        Raises:
            ModelError: The file is missing, no ONNX model, or has no card.
            CardError: The card is not valid, or does not fit the model.
            ProviderError: The provider is not to be had here.
            OptionError: An option does not fit the model.
        """
        self._owned = not isinstance(model, Session)
        self._session = (
            model
            if isinstance(model, Session)
            else open_session(model, provider=provider, card=card, threads=threads)
        )
        self._options = options or RunOptions()
        self._lock = Lock()
        self._closed = False
        self._jobs: set[_Job] = set()
        self._streams: WeakSet[BandStream] = WeakSet()
        try:
            check_options(self._options, self._session)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the segmenter itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @property
    def card(self) -> ModelCard:
        """What the model expects and gives."""
        return self._session.card

    @property
    def provider(self) -> str:
        """Where the model runs."""
        return self._session.provider

    def segment(
        self,
        slide: str | Path | Slide,
        out: str | Path,
        *,
        truth: str | Path | None = None,
        roi: str | Path | None = None,
        overwrite: bool = False,
        on_progress: Progress | None = None,
        cancel: Event | None = None,
        deadline_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Segment one slide into `out/<name>/`, which appears whole or not at all, and return its report.

        A result of the very same model, slide file and options that is there already is returned as it is,
        with `skipped`. A run of a file that was killed, cancelled or late goes on where it stopped.

        Args:
            slide: A file that OpenSlide reads; or an open slide: a `LiveSlide`, what `open_slide` gives, or
                any object like `histoseg.slide.Slide`.
            out: Folder for results; it is made when it is missing.
            truth: A mask or annotations to score against.
            roi: A mask or annotations outside of which all is background.
            overwrite: Run from the beginning, whatever there is.
            on_progress: See `Progress`; what it raises stops the run.
            cancel: Once it is set, from any thread, the run stops within one batch, its threads joined.
            deadline_seconds: From now on; a run that is not done by then stops in the same way.

        Returns:
            What `report.json` holds.

        Raises:
            CancelledError: `cancel` was set, or the segmenter was closed.
            DeadlineError: The deadline passed.
            SlideError: The slide cannot be opened or read, or has the wrong um/px.
            HistosegError: See `histoseg.errors`.
        """
        with self._enter_job(Stop(cancel, deadline_seconds)) as stop:
            return segment_slide(
                slide,
                self._session,
                out,
                self._options,
                truth=truth,
                roi=roi,
                overwrite=overwrite,
                on_progress=_forward(on_progress),
                cancel=stop,
            )

    def stream(
        self,
        slide: str | Path | Slide,
        *,
        probabilities: bool = False,
        roi: str | Path | None = None,
        on_progress: Progress | None = None,
        cancel: Event | None = None,
        deadline_seconds: float | None = None,
    ) -> BandStream:
        """Yield finished bands of a slide from top to bottom; no file is written.

        Nothing is opened, and nothing can fail, before the first band is asked for. Bands wait for whoever
        takes them: a slow consumer slows the run down, not memory up. With `RunOptions.max_memory` a wide
        slide may come in panels, each from top to bottom.

        Args:
            slide: As of `segment`.
            probabilities: Hand out what the labels come from, too: four bytes for each pixel and class.
            roi: As of `segment`.
            on_progress: As of `segment`.
            cancel: As of `segment`.
            deadline_seconds: As of `segment`.

        Returns:
            An iterator, which raises what `segment` does; to be closed where it is not used up.
        """
        stop = Stop(cancel, deadline_seconds)
        bands = self._iter_bands(slide, stop, probabilities, roi, _time_tiles(on_progress))
        stream = BandStream(bands, stop)
        with self._lock:
            self._refuse_closed()
            self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Stop what runs, wait for it, and release the model. May be called from any thread, and again."""
        with self._lock:
            self._closed = True
            jobs, streams = list(self._jobs), list(self._streams)
        for job in jobs:
            job.stop.set()
        for stream in streams:
            stream.close()
        for job in jobs:
            if job.thread is not current_thread():  # a callback of that very job closes us
                job.ended.wait()
        if self._owned:
            self._session.__exit__(None, None, None)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ModelError(f"{self._session.name}: the segmenter is closed; open another one")

    @contextmanager
    def _enter_job(self, stop: Stop) -> Iterator[Stop]:
        job = _Job(stop)
        with self._lock:
            self._refuse_closed()
            self._jobs.add(job)
        try:
            yield stop
        finally:
            with self._lock:
                self._jobs.discard(job)
            job.ended.set()

    def _iter_bands(
        self,
        slide: str | Path | Slide,
        stop: Stop,
        probabilities: bool,
        roi: str | Path | None,
        on_tiles: Callable[[int, int], None] | None,
    ) -> Generator[LabelBand]:
        with open_run(slide, self._session, self._options, roi=roi, cancel=stop) as run:
            labeller = Labeller(
                self.card, Stopwatch(), run.plan.panels, threshold=run.options.threshold, roi=run.roi
            )
            rows = iter_rows(run.reader, self._session, run.plan, on_tiles=on_tiles, cancel=stop)
            with closing(rows):
                for parts in rows:
                    yield _join_parts(parts, labeller, run, probabilities)


class BandStream:
    """The bands of one run: an iterator that any thread may close. See `Segmenter.stream`.

    Closing it, or leaving it as a context manager, stops the run within one batch and waits for its threads;
    after that no band is to be had.
    """

    def __init__(self, bands: Generator[LabelBand], stop: Stop) -> None:
        """Hand out `bands`, whose run `stop` stops."""
        self._bands = bands
        self._stop = stop
        self._lock = RLock()
        self._busy = self._ended = self._closed = False

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[LabelBand]:
        """Return the stream itself."""
        return self

    def __next__(self) -> LabelBand:
        """Return the next band once it is finished.

        Raises:
            CancelledError: The stream was closed before its end, maybe by its segmenter.
            HistosegError: What else `Segmenter.segment` raises.
        """
        with self._lock:
            if self._closed and not self._ended:
                self._ended = True
                raise name_stop(self._stop, "before the last band was taken")
            self._busy = True
            try:
                return next(self._bands)
            except BaseException:
                self._ended = True
                raise
            finally:
                self._busy = False

    def close(self) -> None:
        """Stop the run, and wait for its threads, unless a callback of this very run closes it."""
        self._stop.set()
        with self._lock:
            self._closed = True
            if not self._busy:
                self._bands.close()


@dataclass(frozen=True, eq=False)
class _Job:
    """One call of `segment`."""

    stop: Stop
    thread: Thread = field(default_factory=current_thread)
    ended: Event = field(default_factory=Event)


def _forward(on_progress: Progress | None) -> Callable[[RunProgress], None] | None:
    if on_progress is None:
        return None
    return lambda progress: on_progress(progress.done, progress.known, progress.seconds)


def _time_tiles(on_progress: Progress | None) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    begin = time.monotonic()
    return lambda done, known: on_progress(done, known, time.monotonic() - begin)


def _join_parts(parts: Iterator[Band], labeller: Labeller, run: OpenRun, probabilities: bool) -> LabelBand:
    """Return the parts of one band side by side."""
    labels, values, m_corners = [], [], []
    for part in parts:
        labels.append(labeller.label(iter((part,))).labels)
        m_corners.append((part.m_x, part.m_y))
        if probabilities:
            values.append(part.probabilities)
    joined = np.concatenate(labels, axis=1)
    (m_x, m_y), (rows, columns) = m_corners[0], joined.shape
    return LabelBand(
        joined,
        np.concatenate(values, axis=1) if probabilities else None,
        m_x,
        m_y,
        _find_l0_box(run, (m_x, m_y, m_x + columns, m_y + rows)),
    )


def _find_l0_box(run: OpenRun, m_box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """Return a box in level-0 pixels; the last model pixel may reach beyond the slide, the box does not."""
    (width, height), (x, y) = run.slide.slide.level_sizes[0], run.slide.scale.l0_per_m
    return (
        min(width, m_box[0] * x),
        min(height, m_box[1] * y),
        min(width, m_box[2] * x),
        min(height, m_box[3] * y),
    )
