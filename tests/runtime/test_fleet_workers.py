from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from histoseg.demo import write_pyramid
from histoseg.errors import HistosegError, ModelError, OptionError
from histoseg.fleet.run import FleetError, ModelChoice, Order
from histoseg.fleet.sources import SlideSource
from histoseg.fleet.workers import Workers, explain_end, share_threads
from histoseg.folder import OutputInUseError
from histoseg.options import RunOptions

# so many tiles that a worker is still at it when it is killed
MANY = RunOptions(tissue=False, batch_size=1)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[SlideSource]:
    folder = tmp_path_factory.mktemp("slides")
    rgb = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    for name in "abc":
        write_pyramid(folder / f"{name}.tif", rgb, 0.5)
    return [SlideSource(folder / f"{name}.tif", name) for name in "abc"]


def children() -> list[psutil.Process]:
    """Return living worker processes of this one; the tracker of multiprocessing's resources stays."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if any("spawn_main" in word for word in each.cmdline())]


def start(models: Path, out: Path, options: RunOptions = MANY, model: str = "unet", jobs: int = 2) -> Workers:
    return Workers(ModelChoice(models / f"{model}.onnx", "cpu"), Order(out, options), jobs)


class Killer:
    """Kills the worker of a slide once the slide has bands done: of the 17 or so tiles in each."""

    def __init__(self, slide: int, times: int) -> None:
        self.slide, self.times = slide, times
        self.notes: list[str] = []
        self.fleet: Workers

    def __call__(self, index: int, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            self.notes.append(event["text"])
        if event["event"] == "tiles" and index == self.slide and event["done"] > 60 and self.times:
            self.times -= 1
            worker = next(each for each in self.fleet._workers if each.slide == index)
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()


def test_a_slide_whose_worker_is_killed_goes_on_in_another(
    models: Path, slides: list[SlideSource], tmp_path: Path
) -> None:
    killer = Killer(1, times=1)
    with start(models, tmp_path / "out") as fleet:
        killer.fleet = fleet
        ended = dict(fleet.run(slides, killer))
    assert [ended[index].reason for index in range(3)] == [None] * 3
    assert any("SIGKILL" in note and "goes on" in note for note in killer.notes)
    assert ended[1].report["resumed_bands"] > 0
    labels = {(tmp_path / "out" / slide.name / "labels.tif").read_bytes() for slide in slides}
    assert len(labels) == 1  # of equal pixels
    assert children() == []


def test_a_slide_that_kills_every_worker_fails_alone(
    models: Path, slides: list[SlideSource], tmp_path: Path
) -> None:
    killer = Killer(0, times=9)
    with start(models, tmp_path / "out") as fleet:
        killer.fleet = fleet
        ended = dict(fleet.run(slides, killer))
    assert killer.times == 7
    assert "SIGKILL" in ended[0].reason
    assert "--max-memory" in ended[0].reason
    assert ended[1].reason is ended[2].reason is None
    assert children() == []


@pytest.mark.parametrize(
    ("model", "options", "kind"),
    [
        ("missing", MANY, ModelError),
        ("bad_card", MANY, HistosegError),
        ("constant", RunOptions(threshold=0.5), OptionError),
    ],
)
def test_what_fits_no_slide_is_refused_at_once(
    models: Path, tmp_path: Path, model: str, options: RunOptions, kind: type[HistosegError]
) -> None:
    with pytest.raises(kind):
        start(models, tmp_path, options, model)
    assert children() == []


def test_a_run_that_is_left_ends_its_workers_and_keeps_their_journals(
    models: Path, slides: list[SlideSource], tmp_path: Path
) -> None:
    class LeaveError(Exception):
        pass

    def leave(index: int, event: dict[str, Any]) -> None:
        if event["event"] == "tiles" and event["done"] > 30:
            raise LeaveError

    with pytest.raises(LeaveError), start(models, tmp_path / "out") as fleet:
        list(fleet.run(slides, leave))
    assert children() == []
    assert list((tmp_path / "out").glob(".*.part/.journal"))
    with start(models, tmp_path / "out") as fleet:
        ended = dict(fleet.run(slides, lambda index, event: None))
    assert max(outcome.report["resumed_bands"] for outcome in ended.values()) > 0


def test_a_folder_that_is_held_for_a_moment_is_waited_for(
    open_model: Callable, slides: list[SlideSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histoseg.fleet import run

    calls = []

    def segment(*arguments: object, **named: object) -> dict[str, Any]:
        calls.append(named)
        if len(calls) < 3:
            raise OutputInUseError("held")
        return {"ran": True}

    monkeypatch.setattr(run, "segment_slide", segment)
    monkeypatch.setattr(run, "LOOK_SECONDS", 0)
    order = Order(tmp_path, MANY, patience_seconds=60)
    outcome = run.run_slide(slides[0], open_model("conv"), order, lambda event: None)
    assert (outcome.report, len(calls)) == ({"ran": True}, 3)
    calls.clear()
    impatient = run.run_slide(slides[0], open_model("conv"), Order(tmp_path, MANY), lambda event: None)
    assert (impatient.reason, len(calls)) == ("held", 1)


def test_workers_share_the_cpus_unless_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histoseg.fleet.workers.count_cpus", lambda: 8)
    assert [share_threads("cpu", jobs) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert share_threads("cuda", 4) is None


def test_ends_are_explained() -> None:
    assert "SIGKILL, perhaps for lack of memory" in explain_end(-9)
    assert "code 3" in explain_end(3)
    assert "signal 99" in explain_end(-99)
    assert issubclass(FleetError, HistosegError)


@pytest.fixture
def running(
    models: Path, slides: list[SlideSource], tmp_path: Path, start_command: Callable
) -> Iterator[subprocess.Popen[str]]:
    """A command with two workers in the middle of their slides."""
    rgb = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), dtype=np.uint8)
    for name in ("long1", "long2"):
        write_pyramid(tmp_path / f"{name}.tif", rgb, 0.5)
    words = ["--jobs", "2", "--json", "--no-tissue", "--batch", "1", "-o", "out"]
    process = subprocess.Popen(
        start_command("histoseg-run", "long1.tif", "long2.tif", *words, "-m", models / "unet.onnx"),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a group of its own, so that Ctrl-C can be sent to all of it
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "to_all"),
    [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, False), (signal.SIGINT, 130, True)],
)
def test_a_signal_ends_all_processes_and_keeps_the_journals(
    running: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, code: int, to_all: bool
) -> None:
    assert running.stdout is not None
    started = set()
    for line in running.stdout:
        event = json.loads(line)
        if event["event"] == "tiles" and event["done"] > 150:
            started.add(event["slide"])
        if len(started) == 2:
            break
    workers = psutil.Process(running.pid).children(recursive=True)
    assert len(workers) >= 2
    (os.killpg if to_all else os.kill)(running.pid, number)
    stdout, stderr = running.communicate(timeout=120)
    assert running.returncode == code, stderr
    how = {143: "terminated", 130: "interrupted"}[code]
    assert stderr == f"histoseg-run: {how}; the same command goes on where it stopped\n"
    last = json.loads(stdout.splitlines()[-1])
    assert (last["code"], last["stopped"]) == (code, 2)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    out = tmp_path / "out"
    assert {path.parent.name for path in out.glob(".*.part/*")} == {".long1.part", ".long2.part"}
    assert {path.name for path in out.glob(".*.part/*")} == {".journal"}
    rows = json.loads((out / "summary.json").read_text())["slides"]
    assert [row["status"] for row in rows] == ["stopped", "stopped"]


def test_workers_end_when_their_parent_is_killed(running: subprocess.Popen[str]) -> None:
    assert running.stdout is not None
    next(line for line in running.stdout if json.loads(line)["event"] == "tiles")
    workers = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
