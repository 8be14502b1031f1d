"""Killing a run and starting it again: real processes, real SIGKILL."""

from __future__ import annotations

import csv
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histoseg_train.architectures import UnetOptions
from histoseg_train.fit import Listener, fit_model
from histoseg_train.job import FitOptions, Job, PatchOptions
from histoseg_train.losses import LossOptions
from histoseg_train.metadata import require_metadata
from histoseg_train.modelfile import load_model
from histoseg_train.resume import describe_run, find_state
from histoseg_train.teachers import find_teachers

MakeFolder = Callable[..., Path]

TINY = shlex.split("--arch=unet-w2-d1 --patch=16 --batch=2 --steps=9 --epochs=9 --learning-rate=0.02")


def start(folder: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "histoseg_train", "fit", str(folder), "-o", str(output), *TINY, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_until_killed(process: subprocess.Popen[str], *, lines: int, wait: float = 0) -> str:
    """Kill a run after so many epochs of its own; return what it printed."""
    assert process.stdout is not None
    seen = ""
    with process:
        for line in process.stdout:
            seen += line
            lines -= line.startswith("epoch")
            if lines == 0:
                time.sleep(wait)
                process.send_signal(signal.SIGKILL)
    return seen


def weights(path: Path) -> list[np.ndarray]:
    return load_model(path).get_weights()


def assert_same_run(one: Path, other: Path) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    first, second = require_metadata(one), require_metadata(other)
    for key in ("dice", "epochs", "best_epoch"):
        assert first.training[key] == second.training[key]
    rows = [
        [{**row, "seconds": ""} for row in csv.DictReader(path.with_suffix(".history.csv").open())]
        for path in (one, other)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--mixed-precision --optimizer=sgd --schedule=plateau --plateau-patience=1 --monitor=loss",
    ],
)
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(
    make_folder: MakeFolder, tmp_path: Path, more: str
) -> None:
    folder, options = make_folder(4), shlex.split(more)
    undisturbed = start(folder, tmp_path / "whole.keras", *options)
    assert run_until_killed(undisturbed, lines=-1).count("\nepoch") == 9
    run_until_killed(start(folder, tmp_path / "killed.keras", *options), lines=1)
    seen = run_until_killed(start(folder, tmp_path / "killed.keras", *options), lines=1, wait=0.02)
    assert "training goes on after epoch 1;" in seen
    last = start(folder, tmp_path / "killed.keras", *options)
    assert "training goes on after epoch" in run_until_killed(last, lines=-1)
    assert last.returncode == 0
    assert_same_run(tmp_path / "whole.keras", tmp_path / "killed.keras")
    assert not list(tmp_path.glob("*.state"))
    assert not list(tmp_path.glob(".*"))


class StopError(Exception):
    """Ends a run from within, which is much quicker than a process for each."""


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job(
        patches=PatchOptions(size=16, batch=2, steps=2), fit=FitOptions(epochs=4, learning_rate=0.02)
    )


def stop_after(job: Job, output: Path, epochs: int) -> None:
    def report(epoch: object) -> None:
        if getattr(epoch, "number", 0) == epochs:
            raise StopError

    with pytest.raises(StopError):
        fit_model(job, output, listener=Listener(report))


def continue_run(job: Job, output: Path, *, restart: bool = False) -> tuple[list[str], list[int]]:
    said: list[str] = []
    numbers: list[int] = []
    fit_model(
        job, output, listener=Listener(lambda e: numbers.append(e.number), said.append), restart=restart
    )
    return said, numbers


def test_a_taught_run_goes_on_with_what_its_teacher_said(job: Job, tmp_path: Path) -> None:
    fit_model(job, tmp_path / "teacher.keras")
    patches = replace(job.patches, augment=replace(job.patches.augment, restain=1))
    taught = replace(job, patches=patches, teachers=find_teachers([tmp_path / "teacher.keras"]))
    fit_model(taught, tmp_path / "whole.keras")
    stop_after(taught, tmp_path / "killed.keras", 2)
    said, numbers = continue_run(taught, tmp_path / "killed.keras")
    assert numbers == [3, 4]
    assert "training goes on after epoch 2" in said[0]
    assert said[1:] == ["1 teacher looks at 3 images"]
    assert_same_run(tmp_path / "whole.keras", tmp_path / "killed.keras")


def test_a_run_without_epochs_left_asks_no_teacher(job: Job, tmp_path: Path) -> None:
    fit_model(job, tmp_path / "teacher.keras")
    taught = replace(job, teachers=find_teachers([tmp_path / "teacher.keras"]))
    stop_after(taught, tmp_path / "killed.keras", 4)
    said, numbers = continue_run(taught, tmp_path / "killed.keras")
    assert numbers == []
    assert not any("teacher" in line.removeprefix(str(tmp_path)) for line in said)


@pytest.mark.parametrize("epochs", [1, 4])
def test_it_goes_on_after_any_epoch(job: Job, tmp_path: Path, epochs: int) -> None:
    fit_model(job, tmp_path / "whole.keras")
    stop_after(job, tmp_path / "stopped.keras", epochs)
    _, numbers = continue_run(job, tmp_path / "stopped.keras")
    assert numbers == list(range(epochs + 1, 5))
    assert_same_run(tmp_path / "whole.keras", tmp_path / "stopped.keras")


def test_a_run_that_had_lost_its_patience_is_only_finished(job: Job, tmp_path: Path) -> None:
    # the rate is so low that nothing changes, and no epoch is better than the first
    patient = replace(job, fit=replace(job.fit, epochs=9, learning_rate=1e-12, patience=2))
    fit_model(patient, tmp_path / "whole.keras")
    stop_after(patient, tmp_path / "stopped.keras", 3)
    assert continue_run(patient, tmp_path / "stopped.keras")[1] == []
    assert_same_run(tmp_path / "whole.keras", tmp_path / "stopped.keras")


def test_restart_begins_afresh(job: Job, tmp_path: Path) -> None:
    stop_after(job, tmp_path / "m.keras", 2)
    assert continue_run(job, tmp_path / "m.keras", restart=True) == ([], [1, 2, 3, 4])


CHANGES: dict[str, Callable[[Job], Job]] = {
    "arch": lambda job: replace(job, network=UnetOptions(width=3, depth=1)),
    "batch": lambda job: replace(job, patches=replace(job.patches, batch=1)),
    "jpeg": lambda job: replace(
        job, patches=replace(job.patches, augment=replace(job.patches.augment, jpeg=1))
    ),
    "learning_rate": lambda job: replace(job, fit=replace(job.fit, learning_rate=0.01)),
    "spacing_um_px": lambda job: replace(job, target=replace(job.target, spacing_um_px=0.6)),
    "terms": lambda job: replace(job, loss=LossOptions((("ce", 1.0),))),
}


def test_another_command_begins_afresh_and_says_why(job: Job, tmp_path: Path) -> None:
    stop_after(job, tmp_path / "m.keras", 2)
    said: list[str] = []
    for change in CHANGES.values():
        assert find_state(tmp_path / "m.state", describe_run(change(job)), tell=said.append) is None
    state = tmp_path / "m.state"
    assert said == [f"{state}: of a run with other {word}; training starts afresh" for word in CHANGES]
    assert continue_run(CHANGES["terms"](job), tmp_path / "m.keras")[1] == [1, 2, 3, 4]


def test_other_data_begin_afresh_and_touched_ones_do_not(job: Job, tmp_path: Path) -> None:
    before = describe_run(job)
    image = job.dataset.items[0].image
    image.touch()
    assert describe_run(job) == before
    image.write_bytes(job.dataset.items[1].image.read_bytes())
    after = describe_run(job)
    assert {name for name in after if after[name] != before[name]} == {"data"}


def test_a_damaged_state_begins_afresh(job: Job, tmp_path: Path) -> None:
    stop_after(job, tmp_path / "m.keras", 1)
    state, run = tmp_path / "m.state", describe_run(job)
    whole = state.read_bytes()
    assert find_state(state, run, tell=lambda _: None) is not None
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        said: list[str] = []
        state.write_bytes(whole[:kept])
        assert find_state(state, run, tell=said.append) is None
        assert "damaged" in said[0]
        assert "training starts afresh" in said[0]
