"""A fleet on a Dask cluster: one task for each slide.

A task's failure is an outcome, as everywhere; what Dask itself runs again are the slides of a worker that was
lost, on another one, where the journal in the shared output folder lets them go on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import histoseg
from histoseg.errors import HistosegError, ModelError
from histoseg.fleet.here import Runner
from histoseg.fleet.run import FleetError, ModelChoice, ModelFacts, Order, Outcome, place_absolutely
from histoseg.fleet.tasks import ModelFile, hand_on, open_task, run_task

if TYPE_CHECKING:
    from histoseg.fleet.here import Emit
    from histoseg.fleet.sources import SlideSource

# A task that fails for reasons of the cluster's, such as a message that was lost, is run again so often.
RETRIES = 2
CONNECT_SECONDS = 30.0
# After this long without a worker, a person is told.
WAIT_SECONDS = 20.0
# A lost worker's slide may be held until the file system finds out; some take a lease's time.
PATIENCE_SECONDS = 90.0
# Between two progress events of a slide: all of them pass through the scheduler.
TELL_SECONDS = 1.0


class Cluster(Runner):
    """Runs slides on the workers of a Dask cluster that is there already."""

    def __init__(self, choice: ModelChoice, order: Order, address: str) -> None:
        """Connect, and open the model on the first worker that is free.

        Args:
            choice: The model.
            order: What is done.
            address: Of the scheduler, such as `tcp://host:8786`.

        Raises:
            HistosegError: See `ModelChoice.open`.
            FleetError: `distributed` is not installed, or the cluster cannot be reached or used.
        """
        self._order = order
        model = _pack(choice)
        self._client = _connect(address)
        try:
            self._events = self._listen()
            with warnings.catch_warnings():
                # the model is in the graph on purpose: a copy on a worker alone would be lost with it
                warnings.filterwarnings("ignore", message="Sending large graph")
                self._model = self._client.submit(hand_on, model, pure=False)
            self.facts = self._probe()
            self.jobs = sum(self._client.nthreads().values())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster: what still runs there stops within a batch; what it had done is kept."""
        with suppress(OSError, RuntimeError):  # the scheduler may be gone
            self._client.close(timeout=5)

    def run(self, slides: Sequence[SlideSource], emit: Emit) -> Iterator[tuple[int, Outcome]]:
        """Yield how each slide ended; see `histoseg.fleet.here.Runner`."""
        futures = [self._submit(index, slide) for index, slide in enumerate(slides)]
        for index, future in enumerate(futures):
            future.add_done_callback(partial(self._note_end, index))
        left = set(range(len(slides)))
        while left:
            index, message = self._events.get()
            if index not in left:
                continue
            if isinstance(message, dict):
                emit(index, message)
                continue
            left.remove(index)
            yield index, _read_outcome(slides[index], message)

    def _submit(self, index: int, slide: SlideSource) -> Any:
        placed, order = place_absolutely(slide, self._order)
        order = replace(order, patience_seconds=PATIENCE_SECONDS, tell_seconds=TELL_SECONDS)
        # the earlier slides first; and never the result of an equal task
        return self._client.submit(
            run_task, placed, order, self._model, (self._topic, index), histoseg.__version__,
            key=f"histoseg-{slide.name}-{uuid4().hex}", pure=False, retries=RETRIES, priority=-index,
        )  # fmt: skip

    def _listen(self) -> Queue[tuple[int, Any]]:
        """Return a queue of what workers say of slides, and of futures that have ended."""
        events: Queue[tuple[int, Any]] = Queue()
        self._topic = f"histoseg-{uuid4().hex}"
        self._client.subscribe_topic(self._topic, lambda told: events.put(tuple(told[1])))
        return events

    def _note_end(self, index: int, future: Any) -> None:
        self._events.put((index, future))

    def _probe(self) -> ModelFacts:
        """Open the model on a worker and return what it is."""
        future = self._client.submit(
            open_task, self._model, self._order.options, histoseg.__version__, pure=False, retries=RETRIES
        )
        try:
            facts = self._await(future)
        except HistosegError:
            raise
        except Exception as error:  # whatever a worker could not do
            raise FleetError(_explain(error)) from error
        assert isinstance(facts, ModelFacts)
        return facts

    def _await(self, future: Any) -> Any:
        from distributed import TimeoutError as LateError

        try:
            return future.result(timeout=WAIT_SECONDS)
        except LateError:
            logging.getLogger(__name__).warning(
                "the cluster at %s has %d workers; waiting for one that is free",
                self._client.scheduler.address,
                len(self._client.nthreads()),
            )
        return future.result()


def _connect(address: str) -> Any:
    """Return a `distributed.Client`; `address` may be a scheduler file, too."""
    try:
        from distributed import Client
    except ImportError as error:
        raise FleetError(
            f"--dask needs the package distributed ({error}); repair with: pip install 'histoseg[dask]'"
        ) from error
    file = address if Path(address).is_file() else None
    connect: Any = Client  # it has no types
    try:
        return connect(
            None if file else address,
            scheduler_file=file,
            timeout=CONNECT_SECONDS,
            set_as_default=False,
            name="histoseg",
        )
    except (OSError, ValueError, KeyError) as error:
        raise FleetError(
            f"--dask {address}: no Dask scheduler answers there ({error}), expected an address such as "
            "tcp://host:8786, or a scheduler file; start one with: dask scheduler"
        ) from error


def _pack(choice: ModelChoice) -> ModelFile:
    beside = choice.path.with_suffix(".json")
    return ModelFile(
        choice.path.name,
        _read(choice.path, "model"),
        _read(choice.card, "card") if choice.card else None,
        _read(beside, "card") if beside.is_file() else None,
        choice.provider,
        choice.threads,
    )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such {what} file") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def _read_outcome(slide: SlideSource, future: Any) -> Outcome:
    """Return how a slide's task ended."""
    if future.status == "finished":
        outcome = future.result()
        assert isinstance(outcome, Outcome)
        # the same words as of a run on one machine
        reason = outcome.reason and outcome.reason.replace(str(slide.path.absolute()), str(slide.path))
        return replace(outcome, reason=reason)
    if future.status == "error":
        return Outcome(reason=f"{slide.path}: {_explain(future.exception())}")
    return Outcome(
        reason=f"{slide.path}: the scheduler was lost or dropped the task; run the same command again"
    )


def _explain(error: BaseException) -> str:
    """Return in one line why a task failed."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return (
            f"{error.allowed_failures + 1} workers were lost while they ran it; give them more memory, or "
            "set --max-memory"
        )
    if isinstance(error, HistosegError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"a worker cannot import what it needs ({error}); install histoseg {histoseg.__version__} there"
        )
    return f"a worker failed ({type(error).__name__}: {error}); see its log"
