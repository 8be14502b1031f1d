"""What a fleet runs on the workers of a Dask cluster, which have a model each and stop when they should."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import histoseg
from histoseg.fleet.run import FleetError, ModelChoice, ModelFacts, Order, Outcome, run_slide
from histoseg.fleet.sources import SlideSource
from histoseg.options import RunOptions, check_options
from histoseg.providers import has_device

if TYPE_CHECKING:
    from histoseg.session import Session

_opening = Lock()


@dataclass(frozen=True)
class ModelFile:
    """A model on its way to the workers: they need not see its file."""

    name: str
    data: bytes
    card: bytes | None
    """Of `--card`."""
    beside: bytes | None
    """Of the file beside the model that may be its card."""
    provider: str
    threads: int | None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from other models."""
        return (
            self.name,
            hashlib.sha256(self.data).digest(),
            self.card,
            self.beside,
            self.provider,
            self.threads,
        )


def hand_on(model: ModelFile) -> ModelFile:
    """Return a model: as a task's result it can be made again when the worker that holds it is lost."""
    return model


def open_task(model: ModelFile, options: RunOptions, version: str) -> ModelFacts:
    """Open a model on the worker that runs this, and return what it is.

    Raises:
        HistosegError: See `ModelChoice.open`.
        FleetError: The worker has another version of this package.
    """
    from distributed import get_worker

    worker = get_worker()
    _refuse_other_version(worker, version)
    return ModelFacts.of(_find_session(worker, model, options))


def run_task(
    slide: SlideSource, order: Order, model: ModelFile, whom: tuple[str, int], version: str
) -> Outcome:
    """Run a slide on the worker that runs this.

    Args:
        slide: The slide, with absolute paths.
        order: What is done, with absolute paths.
        model: The model.
        whom: The topic that takes the events, and the slide's number.
        version: Of this package, where the run was started.

    Raises:
        HistosegError: See `ModelChoice.open`.
        FleetError: The worker has another version of this package.
    """
    from distributed import Reschedule, get_worker

    worker, (topic, index) = get_worker(), whom
    _refuse_other_version(worker, version)
    stop = _TaskStop(worker, str(worker.get_current_task()))
    session = _find_session(worker, model, order.options)

    def emit(event: dict[str, Any]) -> None:
        worker.log_event(topic, [index, event])

    emit({"event": "slide"})
    outcome = run_slide(slide, session, order, emit, cancel=stop)
    if stop.is_set():  # a worker that ends is no fault of the slide
        raise Reschedule
    return outcome


class _TaskStop(Event):
    """Set once nobody wants a task's result any more, or its worker ends."""

    def __init__(self, worker: Any, key: str) -> None:
        super().__init__()
        self._worker, self._key = worker, key

    def is_set(self) -> bool:
        """Return whether to stop; Dask itself lets a thread that is no longer wanted run on."""
        task = self._worker.state.tasks.get(self._key)
        ends = self._worker.status.name in ("closing", "closed", "failed")
        return ends or task is None or task.state == "cancelled"


def _find_session(worker: Any, model: ModelFile, options: RunOptions) -> Session:
    """Return the worker's session of a model, opened by the first task; a worker keeps one model."""
    with _opening:
        key, session = getattr(worker, "histoseg_session", (None, None))
        if key != model.key:
            worker.histoseg_session = None, None  # two models may be too many for a GPU
            session = _open_packed(model, options, threads=worker.state.nthreads)
            worker.histoseg_session = model.key, session
    assert session is not None
    check_options(options, session)
    return session  # type: ignore[no-any-return]


def _open_packed(model: ModelFile, options: RunOptions, *, threads: int) -> Session:
    with tempfile.TemporaryDirectory(prefix="histoseg-") as name:
        path, card = Path(name) / model.name, Path(name) / "given" / "card.json"
        path.write_bytes(model.data)
        if model.beside is not None:
            path.with_suffix(".json").write_bytes(model.beside)
        if model.card is not None:
            card.parent.mkdir()
            card.write_bytes(model.card)
        return ModelChoice(
            path,
            model.provider,
            card if model.card is not None else None,
            # a worker's threads are its share of the machine
            model.threads or (None if has_device(model.provider) else threads),
        ).open(options)


def _refuse_other_version(worker: Any, version: str) -> None:
    if histoseg.__version__ != version:
        raise FleetError(
            f"the worker {worker.address} has histoseg {histoseg.__version__}, expected {version} as where "
            "the run was started; install the same there"
        )
