"""One slide of a fleet: the same in this process, in another one, and on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from histoseg.errors import HistosegError, OptionError
from histoseg.fleet.sources import SlideSource
from histoseg.folder import OutputInUseError
from histoseg.job import segment_slide
from histoseg.options import RunOptions, check_options
from histoseg.session import Session, open_session
from histoseg.slide import open_slide

if TYPE_CHECKING:
    from histoseg.progress import RunProgress
    from histoseg.slide import Slide

Emit = Callable[[dict[str, Any]], None]

# Between two looks at a folder that another process holds.
LOOK_SECONDS = 0.2


class FleetError(HistosegError, RuntimeError):
    """A worker process, or the cluster, fails."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model runs, and on what; see `histoseg.session.open_session`."""

    path: Path
    provider: str = "auto"
    card: Path | None = None
    threads: int | None = None

    def open(self, options: RunOptions) -> Session:
        """Return an open session that the options fit.

        Raises:
            ModelError: The file is no model.
            CardError: The card is not valid, or does not fit the model.
            ProviderError: The provider is not to be had here.
            OptionError: An option does not fit the model.
        """
        session = open_session(self.path, provider=self.provider, card=self.card, threads=self.threads)
        try:
            check_options(options, session)
        except OptionError:
            session.__exit__(None, None, None)
            raise
        return session


@dataclass(frozen=True)
class ModelFacts:
    """What an open model is, for those who do not hold it."""

    name: str
    provider: str

    @classmethod
    def of(cls, session: Session) -> ModelFacts:
        """Return what a session is."""
        return cls(Path(session.name).stem, session.provider)


@dataclass(frozen=True)
class Order:
    """What is done to every slide."""

    out: Path
    options: RunOptions
    roi: Path | None = None
    overwrite: bool = False
    word: str = field(default_factory=lambda: uuid4().hex)
    """Names this order: a slide that is run twice for it, because a worker was lost, is overwritten once."""
    patience_seconds: float = 0
    """How long to wait for a folder that another process holds: a killed one does a moment longer."""
    tell_seconds: float = 0.1
    """Between two progress events of a slide."""


@dataclass(frozen=True)
class Outcome:
    """How a slide ended."""

    report: dict[str, Any] | None = None
    """What `report.json` holds, and `skipped`; `None` where it failed."""
    reason: str | None = None
    """Why it failed."""
    seconds: float | None = None
    """Until it failed, where that is known."""


def run_slide(
    slide: SlideSource, session: Session, order: Order, emit: Emit, *, cancel: Event | None = None
) -> Outcome:
    """Run one slide; a failure is an outcome, so that it stops no other slide.

    Args:
        slide: The slide.
        session: The model.
        order: What is done.
        emit: Takes the events `tiles` and `note`, without their `slide`.
        cancel: See `segment_slide`.
    """
    begin = time.perf_counter()
    try:
        return Outcome(_run_patiently(slide, session, order, emit, cancel))
    except (HistosegError, OSError) as error:
        reason = str(error)
    except MemoryError as error:
        reason = f"{slide.path}: not enough memory ({error}); set --max-memory, or lower --jobs"
    return Outcome(reason=reason, seconds=round(time.perf_counter() - begin, 4))


def _run_patiently(
    slide: SlideSource, session: Session, order: Order, emit: Emit, cancel: Event | None
) -> dict[str, Any]:
    """Run a slide; wait for its folder for as long as a process that was killed may hold it."""
    end = time.monotonic() + order.patience_seconds
    while True:
        try:
            return _segment(slide, session, order, emit, cancel)
        except OutputInUseError:
            if time.monotonic() >= end:
                raise
            time.sleep(LOOK_SECONDS)


def _segment(
    slide: SlideSource, session: Session, order: Order, emit: Emit, cancel: Event | None
) -> dict[str, Any]:
    with _open_named(slide, session) as opened:
        return segment_slide(
            opened,
            session,
            order.out,
            order.options,
            truth=slide.truth,
            roi=order.roi,
            overwrite=order.word if order.overwrite else False,
            on_progress=Teller(emit, order.tell_seconds).tell,
            on_note=lambda text: emit({"event": "note", "text": text}),
            cancel=cancel,
        )


def _open_named(slide: SlideSource, session: Session) -> AbstractContextManager[Path | Slide]:
    """Return a slide's path; or the open slide, where it is called otherwise than its file."""
    if slide.name == slide.path.stem:
        return nullcontext(slide.path)
    opened = open_slide(slide.path, color_space=session.card.input.color_space)
    opened.name = slide.name
    return opened


class Teller:
    """Makes events of a run's progress, so few that sending them costs nothing."""

    def __init__(self, emit: Emit, seconds: float) -> None:
        """Tell `emit`, with this many seconds between two events."""
        self._emit, self._seconds = emit, seconds
        self._next = 0.0

    def tell(self, progress: RunProgress) -> None:
        """Emit progress if it is the last, or some time after the one before."""
        now = time.monotonic()
        if now >= self._next or progress.done == progress.known:
            self._next = now + self._seconds
            self._emit({"event": "tiles", **asdict(progress)})


def place_absolutely(slide: SlideSource, order: Order) -> tuple[SlideSource, Order]:
    """Return both with absolute paths, for processes with another working folder."""
    truth = slide.truth and slide.truth.absolute()
    roi = order.roi and order.roi.absolute()
    return (
        replace(slide, path=slide.path.absolute(), truth=truth),
        replace(order, out=order.out.absolute(), roi=roi),
    )
