"""A fleet on one machine: worker processes, each with a model of its own, one slide at a time.

Every worker has its own pipe, so that one that is killed in the middle of a message harms no other. What a
worker needs is sent to a fresh interpreter: a fork would copy the locks of this process's threads.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from histoseg.command import Terminated, terminate
from histoseg.cpu import count_cpus
from histoseg.errors import HistosegError
from histoseg.fleet.here import Runner
from histoseg.fleet.run import FleetError, ModelChoice, ModelFacts, Order, Outcome, run_slide
from histoseg.providers import has_device

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from histoseg.fleet.here import Emit
    from histoseg.fleet.sources import SlideSource

# A slide whose worker died is run once more: it goes on where it stopped.
TRIES = 2
# How long a worker may take to end: it finishes a batch, and closes what it has open.
END_SECONDS = 30.0
ADVICE = "lower --jobs, or set --max-memory, which holds for each of them"
# A killed process may hold its slide's folder this long.
PATIENCE_SECONDS = 10.0


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection[Any, Any]
    slide: int | None = None
    """The number of the slide that it runs."""
    ready: bool = False


class Workers(Runner):
    """Runs slides in processes of this machine."""

    def __init__(self, choice: ModelChoice, order: Order, jobs: int) -> None:
        """Start them and wait until the model is open.

        Args:
            choice: The model; unless it says otherwise, the workers share the CPUs for it evenly.
            order: What is done.
            jobs: Number of processes.

        Raises:
            HistosegError: See `ModelChoice.open`.
            FleetError: A process ended before the model was open.
        """
        self.jobs = jobs
        self._choice = replace(choice, threads=choice.threads or share_threads(choice.provider, jobs))
        self._order = replace(order, patience_seconds=PATIENCE_SECONDS)
        self._workers: list[_Worker] = []
        try:
            self._workers += [self._start(quiet=number > 0) for number in range(jobs)]
            self.facts = self._await_first()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes: the idle ones at once, the others within a batch; what they had done is kept."""
        workers, self._workers = self._workers, []
        try:
            for worker in workers:
                if worker.slide is not None or not worker.ready:
                    worker.process.terminate()
                worker.pipe.close()
            end = time.monotonic() + END_SECONDS
            for worker in workers:
                worker.process.join(max(0.0, end - time.monotonic()))
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()

    def run(self, slides: Sequence[SlideSource], emit: Emit) -> Iterator[tuple[int, Outcome]]:
        """Yield how each slide ended; see `histoseg.fleet.here.Runner`."""
        waiting, tries = deque(range(len(slides))), Counter[int]()
        while waiting or any(worker.slide is not None for worker in self._workers):
            self._give_out(waiting, slides, emit)
            for worker in self._wait():
                message = _receive(worker.pipe)
                if message is not None:
                    outcome = self._take(worker, message, emit)
                else:
                    outcome = self._retry(worker, waiting, tries, slides, emit)
                if outcome is not None:
                    yield outcome

    def _start(self, *, quiet: bool) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        with theirs, _shield_from_interrupts():
            process = context.Process(
                target=_work, args=(self._choice, self._order, theirs, quiet), name="histoseg-worker"
            )
            process.start()
        return _Worker(process, ours)

    def _await_first(self) -> ModelFacts:
        """Wait until a worker has opened the model, or says why it cannot."""
        worker = next(iter(self._wait()))
        message = _receive(worker.pipe)
        if message is None:
            worker.process.join()
            raise FleetError(
                f"{explain_end(worker.process.exitcode)} before it had opened the model; {ADVICE}"
            )
        if isinstance(message, HistosegError):
            raise message
        assert isinstance(message, ModelFacts)
        worker.ready = True
        return message

    def _wait(self) -> list[_Worker]:
        """Return the workers that have something to say, or have ended."""
        heard = wait([worker.pipe for worker in self._workers])
        return [worker for worker in self._workers if worker.pipe in heard]

    def _give_out(self, waiting: deque[int], slides: Sequence[SlideSource], emit: Emit) -> None:
        for worker in self._workers:
            if waiting and worker.ready and worker.slide is None:
                with suppress(OSError):  # it has just ended, and is heard of next
                    worker.pipe.send(slides[waiting[0]])
                worker.slide = waiting.popleft()
                emit(worker.slide, {"event": "slide"})

    def _take(self, worker: _Worker, message: object, emit: Emit) -> tuple[int, Outcome] | None:
        """Handle what a living worker says; return how its slide ended, if it did."""
        if isinstance(message, ModelFacts):
            worker.ready = True
        elif isinstance(message, HistosegError):
            raise message
        elif isinstance(message, Outcome):
            assert worker.slide is not None
            index, worker.slide = worker.slide, None
            return index, message
        else:
            assert isinstance(message, dict)
            assert worker.slide is not None
            emit(worker.slide, message)
        return None

    def _retry(
        self,
        worker: _Worker,
        waiting: deque[int],
        tries: Counter[int],
        slides: Sequence[SlideSource],
        emit: Emit,
    ) -> tuple[int, Outcome] | None:
        """Replace a worker that ended, and put its slide first; return how the slide ended, if it did."""
        index, why = worker.slide, self._replace(worker)
        if index is None:
            return None
        tries[index] += 1
        if tries[index] == TRIES:
            return index, Outcome(reason=f"{slides[index].path}: {why}, {TRIES} times; {ADVICE}")
        waiting.appendleft(index)
        emit(index, {"event": "note", "text": f"{why}; the slide goes on in another one"})
        return None

    def _replace(self, worker: _Worker) -> str:
        """Start a worker in the place of one that ended, and return why that one did.

        Raises:
            FleetError: It had not even opened the model.
        """
        worker.process.join()
        worker.pipe.close()
        why = explain_end(worker.process.exitcode)
        if not worker.ready:
            raise FleetError(f"{why} before it had opened the model; {ADVICE}")
        self._workers[self._workers.index(worker)] = self._start(quiet=True)
        return why


def share_threads(provider: str, jobs: int) -> int | None:
    """Return the threads for the model of each of `jobs` workers; `None`, the usual, on a GPU."""
    return None if has_device(provider) else max(1, count_cpus() // jobs)


def explain_end(code: int | None) -> str:
    """Return in words how a worker process ended."""
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        killed = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"its worker process was ended by {name}{killed}"
    return f"its worker process ended with code {code}"


@contextmanager
def _shield_from_interrupts() -> Iterator[None]:
    """Let what is started here never see Ctrl-C, which goes to all of a terminal's processes.

    A mask is inherited, so that no moment is left in which a worker could be hit.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(pipe: Connection[Any, Any]) -> object | None:
    """Return a message; `None` where the other side has ended, even in the middle of one."""
    try:
        return pipe.recv()  # type: ignore[no-any-return]
    except (EOFError, OSError):
        return None


def _work(choice: ModelChoice, order: Order, pipe: Connection[Any, Any], quiet: bool) -> None:
    """Run the slides that come through a pipe, until it is closed or SIGTERM comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if quiet:  # all workers would warn of the same
        logging.getLogger("histoseg").setLevel(logging.ERROR)
    try:
        signal.signal(signal.SIGTERM, terminate)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            _serve(choice, order, pipe)
    except Terminated:
        sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an interpreter that ends knows no exceptions any more


def _serve(choice: ModelChoice, order: Order, pipe: Connection[Any, Any]) -> None:
    try:
        session = choice.open(order.options)
    except HistosegError as error:
        pipe.send(error)
        return
    with session:
        pipe.send(ModelFacts.of(session))
        while True:
            pipe.send(run_slide(pipe.recv(), session, order, pipe.send))
