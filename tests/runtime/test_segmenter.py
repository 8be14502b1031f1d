from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import histoseg
from histoseg.errors import CancelledError, DeadlineError, ModelError, OptionError, SlideError
from histoseg.job import segment_slide
from histoseg.memory import trim_heap
from histoseg.options import RunOptions
from histoseg.segmenter import LabelBand, Segmenter
from histoseg.session import Session, open_session
from histoseg.slide import ArraySlide, open_slide

ALL = RunOptions(tissue=False)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def histoseg_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("histoseg-")]


def join(bands: Iterator[LabelBand]) -> np.ndarray:
    return np.concatenate([band.labels for band in bands])


@pytest.fixture
def segmenter(open_model) -> Iterator[Segmenter]:
    with Segmenter(open_model("unet"), options=ALL) as opened:
        yield opened
    assert histoseg_threads() == []


@dataclass
class Gate:
    """A model that stops in its `at`th batch until it is let on."""

    session: Session
    at: int
    batches: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def close_session(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = self.session.run

        def count(tiles: np.ndarray) -> np.ndarray:
            self.batches += 1
            if self.batches == self.at:
                self.reached.set()
                assert self.opened.wait(60)
            return run(tiles)

        monkeypatch.setattr(self.session, "run", count)


@pytest.fixture
def gate(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with open_session(models / "conv.onnx", provider="cpu", threads=1) as session:
        gate = Gate(session, at=4)
        gate.close_session(monkeypatch)
        yield gate


ONE = RunOptions(tissue=False, batch_size=1)


# what a run gives


@pytest.mark.parametrize("options", [RunOptions(), RunOptions(tissue=False, threshold=0.3, blend="crop")])
def test_a_job_is_that_of_segment_slide(
    models: Path, open_model, small_slide: Path, tmp_path: Path, options: RunOptions
) -> None:
    truth = small_slide.with_name("truth.png")
    with histoseg.Segmenter(models / "threshold.onnx", provider="cpu", options=options) as segmenter:
        report = segmenter.segment(small_slide, tmp_path / "one", truth=truth)
        assert (segmenter.provider, segmenter.card) == ("cpu", open_model("threshold").card)
    plain = segment_slide(small_slide, open_model("threshold"), tmp_path / "other", options, truth=truth)
    for name in ("labels.tif", "overlay.png"):
        one, other = (tmp_path / kind / "small" / name for kind in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()
    assert report["score"] == plain["score"]


@pytest.mark.parametrize("roi", [False, True])
def test_a_stream_has_the_labels_of_the_file(
    open_model, small_slide: Path, tmp_path: Path, roi: bool
) -> None:
    area = small_slide.with_name("truth.png") if roi else None
    segmenter = Segmenter(open_model("unet"))
    segmenter.segment(small_slide, tmp_path, roi=area)
    labels = join(segmenter.stream(small_slide, roi=area))
    np.testing.assert_array_equal(labels, tifffile.imread(tmp_path / "small" / "labels.tif"))


@settings(max_examples=20)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([0.5, 0.25, 0.19, 0.51]), st.booleans())
def test_bands_lie_where_they_say(
    open_model, width: int, height: int, spacing: float, probabilities: bool
) -> None:
    slide = ArraySlide(noise(height, width), spacing)
    bands = list(Segmenter(open_model("unet"), options=ALL).stream(slide, probabilities=probabilities))
    m_y, l0_y = 0, 0.0
    for band in bands:
        rows, columns = band.labels.shape
        assert (band.m_x, band.m_y) == (0, m_y)
        assert band.l0_box[:3] == (0, l0_y, width)
        m_y, l0_y = m_y + rows, band.l0_box[3]
        assert 0 <= l0_y - band.l0_box[1] <= rows * 0.5 / spacing * 1.06
        if probabilities:
            assert band.probabilities.shape == (rows, columns, 2)
            np.testing.assert_array_equal(band.labels, band.probabilities.argmax(axis=-1))
        else:
            assert band.probabilities is None
    assert l0_y == height


def test_panels_stream_one_after_another(
    open_model, monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter
) -> None:
    slide, whole = ArraySlide(noise(130, 301), 0.5), np.full((130, 301), 9, np.uint8)
    monkeypatch.setattr("histoseg.planning.fit_panels", lambda *_, **__: 3)
    cut = Segmenter(open_model("unet"), options=RunOptions(tissue=False, max_memory=1 << 30))
    for band in cut.stream(slide):
        x0, y0, x1, y1 = map(int, band.l0_box)
        assert (whole[y0:y1, x0:x1] == 9).all()
        whole[y0:y1, x0:x1] = band.labels
    np.testing.assert_array_equal(whole, join(segmenter.stream(slide)))


def test_progress_counts_tiles_and_seconds(segmenter: Segmenter, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    report = segmenter.segment(
        ArraySlide(noise(200, 200), 0.5), tmp_path, on_progress=lambda *told: seen.append(told)
    )
    assert seen[0][:2] == (0, report["tiles"]["run"])
    assert seen[-1][:2] == (report["tiles"]["run"], report["tiles"]["run"])
    assert seen == sorted(seen)
    assert all(0 <= seconds <= report["seconds"]["total"] + 1 for *_, seconds in seen)


def test_nothing_is_printed_sent_caught_or_written(
    models: Path, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """And nothing is left in a module: the second run sees what the first saw."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    capfd.readouterr()
    with Segmenter(models / "unet.onnx", provider="cpu") as segmenter:
        first, second = (join(segmenter.stream(small_slide, probabilities=True)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert list(tmp_path.iterdir()) == []


# several at a time


def test_threads_that_share_a_segmenter_get_the_bytes_of_one_after_the_other(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    slides = [ArraySlide(noise(150 + 9 * seed, 170, seed), 0.5, f"s{seed}") for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        for run in [pool.submit(segmenter.segment, slide, tmp_path / "both") for slide in slides]:
            run.result()
        streamed = [pool.submit(lambda slide=slide: join(segmenter.stream(slide))) for slide in slides]
        streamed = [run.result() for run in streamed]
    for slide, labels in zip(slides, streamed, strict=True):
        segmenter.segment(slide, tmp_path / "one")
        for name in ("labels.tif", "overlay.png"):
            one, both = (tmp_path / kind / slide.name / name for kind in ("one", "both"))
            assert one.read_bytes() == both.read_bytes()
        np.testing.assert_array_equal(labels, tifffile.imread(tmp_path / "one" / slide.name / "labels.tif"))


def test_segmenters_that_share_a_session_close_in_any_order(models: Path) -> None:
    slide = ArraySlide(noise(150, 170), 0.5)
    with open_session(models / "unet.onnx", provider="cpu", threads=1) as session:
        plain = Segmenter(session, options=ALL)
        strict = Segmenter(session, options=RunOptions(tissue=False, threshold=0.9))
        expected = join(plain.stream(slide))
        with plain.stream(slide) as bands:
            first = next(bands)
            strict.close()
            np.testing.assert_array_equal(np.concatenate([first.labels, join(bands)]), expected)
        assert (join(Segmenter(session, options=strict._options).stream(slide)) != expected).any()
    with pytest.raises(ModelError, match="session is closed"):
        join(plain.stream(slide))
    plain.close()
    assert histoseg_threads() == []


# stopping


@pytest.mark.parametrize("kind", ["segment", "stream"])
def test_a_second_thread_stops_a_run_within_its_batch(gate: Gate, tmp_path: Path, kind: str) -> None:
    segmenter, cancel = Segmenter(gate.session, options=ONE), threading.Event()
    slide = ArraySlide(noise(400, 400), 0.5)

    def run() -> None:
        if kind == "segment":
            segmenter.segment(slide, tmp_path / "out", cancel=cancel)
        else:
            join(segmenter.stream(slide, cancel=cancel))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        assert gate.reached.wait(60)
        cancel.set()
        gate.opened.set()
        with pytest.raises(CancelledError, match=r"cancelled after \d+ of \d+ tiles"):
            running.result()
        assert histoseg_threads() == []
    assert gate.batches == gate.at
    assert list(tmp_path.iterdir()) == []


def test_closing_a_segmenter_stops_its_runs_and_waits_for_them(gate: Gate, tmp_path: Path) -> None:
    segmenter, slide = Segmenter(gate.session, options=ONE), ArraySlide(noise(400, 400), 0.5)
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(segmenter.segment, slide, tmp_path / "out"),
            pool.submit(lambda: join(segmenter.stream(slide))),
        ]
        assert gate.reached.wait(60)
        closing = pool.submit(segmenter.close)
        gate.opened.set()
        closing.result()
        assert histoseg_threads() == []
        for run in runs:
            with pytest.raises((CancelledError, ModelError)):
                run.result()
    for use in (lambda: segmenter.segment(slide, tmp_path), lambda: segmenter.stream(slide)):
        with pytest.raises(ModelError, match="the segmenter is closed"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_stream_outlives_its_segmenter_as_an_error(models: Path) -> None:
    slide = ArraySlide(noise(400, 200), 0.5)
    with Segmenter(models / "unet.onnx", provider="cpu", options=ALL) as segmenter:
        begun, fresh = segmenter.stream(slide), segmenter.stream(slide)
        next(begun)
        assert histoseg_threads()
    assert histoseg_threads() == []
    for stream in (begun, fresh):
        with pytest.raises(CancelledError, match="before the last band"):
            next(stream)
        assert list(stream) == []
        stream.close()


def test_a_stream_used_up_or_forgotten_leaves_no_thread(segmenter: Segmenter) -> None:
    slide = ArraySlide(noise(400, 200), 0.5)
    with segmenter.stream(slide) as bands:
        assert sum(len(band.labels) for band in bands) == 400
    assert list(bands) == []
    forgotten = segmenter.stream(slide)
    next(forgotten)
    assert histoseg_threads()
    del forgotten
    gc.collect()
    assert histoseg_threads() == []


@pytest.mark.parametrize("kind", ["segment", "stream"])
def test_a_callback_may_close_what_calls_it(models: Path, tmp_path: Path, kind: str) -> None:
    segmenter = Segmenter(models / "conv.onnx", provider="cpu", options=ONE)
    slide = ArraySlide(noise(300, 300), 0.5)

    def close(done: int, known: int, seconds: float) -> None:
        if done == 2:
            segmenter.close()

    runs = {
        "segment": lambda: segmenter.segment(slide, tmp_path, on_progress=close),
        "stream": lambda: join(segmenter.stream(slide, on_progress=close)),
    }
    with pytest.raises(CancelledError):
        runs[kind]()
    assert histoseg_threads() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slide", ["file", "array"])
def test_a_deadline_that_has_passed_opens_nothing(
    segmenter: Segmenter, small_slide: Path, tmp_path: Path, slide: str
) -> None:
    given = small_slide if slide == "file" else ArraySlide(noise(90, 90), 0.5)
    with pytest.raises(TimeoutError, match=r"the deadline of 0 s passed while .*; allow more time"):
        segmenter.segment(given, tmp_path / "out", deadline_seconds=0)
    with pytest.raises(DeadlineError):
        next(segmenter.stream(given, deadline_seconds=0))
    assert list(tmp_path.iterdir()) == []


def test_a_deadline_stops_a_run_within_its_batch(gate: Gate) -> None:
    segmenter = Segmenter(gate.session, options=ONE)
    threading.Timer(1.5, gate.opened.set).start()
    with pytest.raises(DeadlineError, match=r"the deadline of 1 s passed"):
        join(segmenter.stream(ArraySlide(noise(400, 400), 0.5), deadline_seconds=1))
    assert gate.batches <= gate.at
    assert histoseg_threads() == []


def test_a_deadline_that_is_kept_changes_nothing(segmenter: Segmenter) -> None:
    slide = ArraySlide(noise(100, 100), 0.5)
    expected = join(segmenter.stream(slide))
    np.testing.assert_array_equal(join(segmenter.stream(slide, deadline_seconds=600)), expected)


# nothing leaks


def count_handles() -> int:
    return psutil.Process().num_fds() if sys.platform != "win32" else psutil.Process().num_handles()


SMALL = noise(100, 90)


def close_in_order(segmenter: Segmenter, path: Path, out: Path) -> None:
    with segmenter, open_slide(path) as slide, segmenter.stream(slide) as bands:
        next(bands)


def close_the_segmenter_first(segmenter: Segmenter, path: Path, out: Path) -> None:
    bands = segmenter.stream(ArraySlide(SMALL, 0.5), probabilities=True)
    next(bands)
    segmenter.close()
    bands.close()


def forget_all(segmenter: Segmenter, path: Path, out: Path) -> None:
    next(segmenter.stream(ArraySlide(SMALL, 0.5)))


def run_a_job(segmenter: Segmenter, path: Path, out: Path) -> None:
    with segmenter:
        segmenter.segment(ArraySlide(SMALL, 0.5), out)


def fail(segmenter: Segmenter, path: Path, out: Path) -> None:
    with segmenter, pytest.raises(SlideError):
        segmenter.segment(path.with_name("missing.svs"), out)


def scan(segmenter: Segmenter, path: Path, out: Path) -> None:
    with segmenter, histoseg.LiveSlide(90, 100, 0.5) as live:
        live.push(0, 0, SMALL)
        assert join(segmenter.stream(live)).shape == (100, 90)


def scan_and_leave(segmenter: Segmenter, path: Path, out: Path) -> None:
    live = histoseg.LiveSlide(90, 5000, 0.5)
    live.push(0, 0, SMALL)
    bands = segmenter.stream(live)
    next(bands)
    segmenter.close()
    live.abort()


ALONE = "HISTOSEG_ALONE"
ROUNDS = (close_in_order, close_the_segmenter_first, forget_all, run_a_job, fail, scan, scan_and_leave)


def test_two_hundred_rounds_leak_no_thread_handle_or_memory() -> None:
    """In a process of its own: what other tests have allocated moves the memory of this one by more."""
    node = f"{__file__}::test_rounds_leak_nothing"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", node]
    environment = {**os.environ, ALONE: "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(ALONE not in os.environ, reason="the test above runs it in a process of its own")
def test_rounds_leak_nothing(models: Path, small_slide: Path, tmp_path: Path) -> None:
    """Open, run and close: used up, left early, failed or live, closed in every order."""
    process, resident, handles, threads = psutil.Process(), [], [], []
    for index in range(200):
        segmenter = Segmenter(models / "unet.onnx", provider="cpu", options=ALL, threads=1)
        ROUNDS[index % len(ROUNDS)](segmenter, small_slide, tmp_path)
        del segmenter
        assert histoseg_threads() == []
        if index >= 60 and index % 10 == 9:
            gc.collect()
            trim_heap()
            resident.append(process.memory_info().rss)
            handles.append(count_handles())
            threads.append(process.num_threads())
    # a thread that has ended may count for a moment, and allocators keep now more, now less: a leak raises
    # the least, too
    assert min(handles[7:]) == min(handles[:7])
    assert min(threads[7:]) == min(threads[:7])
    assert min(resident[7:]) - min(resident[:7]) < 8 << 20


def test_options_that_do_not_fit_are_refused_with_the_model_released(models: Path) -> None:
    with pytest.raises(OptionError, match="--overlap"):
        Segmenter(models / "unet.onnx", provider="cpu", options=RunOptions(overlap_px=64))
    with pytest.raises(ModelError, match="no such model"):
        Segmenter(models / "missing.onnx")


def test_a_wrong_roi_is_an_error_of_the_first_band(segmenter: Segmenter, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((100, 100), np.uint8))
    stream = segmenter.stream(ArraySlide(noise(100, 100), 0.5), roi=tmp_path / "empty.png")
    with pytest.raises(histoseg.HistosegError, match="region of interest"):
        next(stream)
    assert list(stream) == []
