from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.errors import CancelledError, DeadlineError, OptionError, PushTimeoutError, SlideError
from histoseg.live import LiveSlide
from histoseg.options import RunOptions
from histoseg.segmenter import Segmenter
from histoseg.slide import ArraySlide, open_slide

ALL = RunOptions(tissue=False)
Piece = tuple[int, int, int, int]


@pytest.fixture(scope="module", autouse=True)
def low_strips() -> Iterator[None]:
    """Strips of 16 rows, so that small slides have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histoseg.strips.STRIP_ROWS", 16)
        patch.setattr("histoseg.live.STRIP_ROWS", 16)
        yield


@pytest.fixture(scope="module")
def segmenter(open_model) -> Segmenter:
    return Segmenter(open_model("unet"), options=ALL)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def histoseg_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("histoseg-")]


def cut(width: int, height: int, piece_width: int, piece_height: int) -> list[Piece]:
    return [
        (x, y, min(piece_width, width - x), min(piece_height, height - y))
        for y in range(0, height, piece_height)
        for x in range(0, width, piece_width)
    ]


def push_all(live: LiveSlide, rgb: np.ndarray, pieces: list[Piece], **how: float) -> None:
    with live:
        for x, y, width, height in pieces:
            live.push(x, y, rgb[y : y + height, x : x + width], **how)


def collect(bands: Iterator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities of all bands, which have to follow one another."""
    labels, values, m_y = [], [], 0
    for band in bands:
        assert (band.m_x, band.m_y) == (0, m_y)
        m_y += len(band.labels)
        labels.append(band.labels)
        values.append(band.probabilities)
    return np.concatenate(labels), np.concatenate(values)


def assert_same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.tobytes() == right.tobytes()


def run_scanned(segmenter: Segmenter, live: LiveSlide, scan: Callable[[], None]) -> tuple:
    """Scan in one thread, collect bands in this one."""
    with ThreadPoolExecutor(1) as scanner:
        scanned = scanner.submit(scan)
        result = collect(segmenter.stream(live, probabilities=True))
        scanned.result()
    return result


# the same bytes, whatever the order


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 140), st.integers(1, 200)),
    piece=st.tuples(st.integers(9, 140), st.integers(9, 90)),
    spacing=st.sampled_from([0.5, 0.25, 0.19, 0.51]),
    ahead=st.booleans(),
    data=st.data(),
)
def test_any_order_of_pushes_gives_the_bytes_of_the_file(
    segmenter: Segmenter, size: tuple, piece: tuple, spacing: float, ahead: bool, data: st.DataObject
) -> None:
    (width, height), rgb = size, noise(size[1], size[0])
    pieces = data.draw(st.permutations(cut(width, height, *piece)))
    live = LiveSlide(width, height, spacing)
    if ahead:
        push_all(live, rgb, pieces)
        result = collect(segmenter.stream(live, probabilities=True))
    else:
        result = run_scanned(segmenter, live, lambda: push_all(live, rgb, pieces))
    assert_same(result, collect(segmenter.stream(ArraySlide(rgb, spacing), probabilities=True)))
    assert live.held_bytes == 0
    assert live.gap_px == 0


@settings(max_examples=20)
@given(st.data())
def test_the_first_of_two_pushes_stays_and_gaps_are_white(segmenter: Segmenter, data: st.DataObject) -> None:
    width, height = 90, 110
    expected, come = np.full((height, width, 3), 255, np.uint8), np.zeros((height, width), bool)
    pushes = []
    for index in range(data.draw(st.integers(0, 6))):
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
        rgb, place = noise(h, w, index), (slice(y, y + h), slice(x, x + w))
        expected[place] = np.where(come[place][..., None], expected[place], rgb)
        come[place] = True
        pushes.append((x, y, rgb))
    live = LiveSlide(width, height, 0.5)

    def scan() -> None:
        for push in pushes:
            live.push(*push)
        assert live.gap_px is None
        assert live.finish() == (~come).sum()

    result = run_scanned(segmenter, live, scan)
    assert_same(result, collect(segmenter.stream(ArraySlide(expected, 0.5), probabilities=True)))
    assert live.gap_px == (~come).sum()


def iter_serpentine(width: int, height: int, side: int, overlap: int) -> Iterator[Piece]:
    for index, y in enumerate(range(0, height, side)):
        columns = range(0, width, side)
        for x in columns if index % 2 == 0 else reversed(columns):
            yield x, y, min(side + overlap, width - x), min(side + overlap, height - y)


def test_a_real_slide_in_serpentine_fields_of_view_gives_the_bytes_of_the_file(
    segmenter: Segmenter, real_svs: Path, tmp_path: Path
) -> None:
    with open_slide(real_svs) as file, ThreadPoolExecutor(1) as scanner:
        live = LiveSlide(*file.level_sizes[0], file.spacing_um_px, name=file.name)

        def scan() -> None:
            with live:
                for x, y, width, height in iter_serpentine(*file.level_sizes[0], 400, 37):
                    live.push(x, y, file.read_level(0, x, y, width, height))

        scanned = scanner.submit(scan)
        report = segmenter.segment(live, tmp_path / "live")
        scanned.result()
        expected = segmenter.segment(file, tmp_path / "file")
    for name in ("labels.tif", "overlay.png"):
        one, other = (tmp_path / kind / file.name / name for kind in ("live", "file"))
        assert one.read_bytes() == other.read_bytes()
    assert report["classes"] == expected["classes"]
    assert (report["tissue"], report["slide"]["gap_px"]) == (None, 0)


def test_an_overlay_of_many_blocks_is_drawn_from_pixels_that_are_gone(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoseg.overview.OVERVIEW_BLOCK_PX", 100)
    monkeypatch.setattr("histoseg.live.OVERVIEW_BLOCK_PX", 100)
    rgb, live = noise(1500, 90), LiveSlide(90, 1500, 0.5, name="one", max_bytes=420 * 90 * 4)
    with ThreadPoolExecutor(1) as scanner:
        scanned = scanner.submit(push_all, live, rgb, cut(90, 1500, 90, 7))
        segmenter.segment(live, tmp_path / "live")
        scanned.result()
    segmenter.segment(ArraySlide(rgb, 0.5, "one"), tmp_path / "array")
    for name in ("labels.tif", "overlay.png"):
        left, right = (tmp_path / kind / "one" / name for kind in ("live", "array"))
        assert left.read_bytes() == right.read_bytes()


def test_a_region_of_interest_runs_alone_and_the_overlay_shows_the_rest(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    mask, rgb = np.zeros((300, 200), np.uint8), noise(300, 200)
    mask[100:160, 60:90] = 255
    assert cv2.imwrite(str(tmp_path / "roi.png"), mask)
    live = LiveSlide(200, 300, 0.5, name="one")
    with ThreadPoolExecutor(1) as scanner:
        # the last columns come last: the picture waits for pixels that no tile needs
        scanned = scanner.submit(push_all, live, rgb, sorted(cut(200, 300, 50, 50)))
        report = segmenter.segment(live, tmp_path / "live", roi=tmp_path / "roi.png")
        scanned.result()
    segmenter.segment(ArraySlide(rgb, 0.5, "one"), tmp_path / "array", roi=tmp_path / "roi.png")
    assert 0 < report["tiles"]["run"] < report["tiles"]["total"]
    for name in ("labels.tif", "overlay.png"):
        left, right = (tmp_path / kind / "one" / name for kind in ("live", "array"))
        assert left.read_bytes() == right.read_bytes()


# while the scan goes on


def test_a_band_is_there_before_the_next_rows_are(segmenter: Segmenter) -> None:
    """In one thread: were a band to wait for more than its own tiles, this would never end."""
    rgb, live, labels = noise(200, 70), LiveSlide(70, 200, 0.5), []
    grid_rows = range(-6, 200, 38)  # where tiles of 64 px begin
    with segmenter.stream(live) as bands:
        pushed = 0
        for top in grid_rows[:4]:
            live.push(0, pushed, rgb[pushed : top + 64])
            pushed = top + 64
            labels.append(next(bands).labels)
        assert sum(map(len, labels)) > 100
        live.push(0, pushed, rgb[pushed:])
        labels += [band.labels for band in bands]
    expected = [band.labels for band in segmenter.stream(ArraySlide(rgb, 0.5))]
    np.testing.assert_array_equal(np.concatenate(labels), np.concatenate(expected))


def test_memory_never_exceeds_max_bytes_however_fast_rows_come(segmenter: Segmenter) -> None:
    rgb, most = noise(3000, 80), 160 * 80 * 4
    live, held = LiveSlide(80, 3000, 0.5, max_bytes=most), []

    def scan() -> None:
        for y in range(3000):
            live.push(0, y, rgb[y : y + 1])
            held.append(live.held_bytes)
        live.finish()

    result = run_scanned(segmenter, live, scan)
    assert 10 * most < 3000 * 80 * 3
    assert most // 2 < max(held) <= most
    assert_same(result, collect(segmenter.stream(ArraySlide(rgb, 0.5), probabilities=True)))


def test_pushes_wait_for_a_run_and_can_be_repeated(segmenter: Segmenter) -> None:
    rgb, live = noise(600, 80), LiveSlide(80, 600, 0.5, max_bytes=200 * 80 * 4)
    with pytest.raises(PushTimeoutError, match=r"no room for row \d+ within 0\.01 s"):
        live.push(0, 0, rgb, timeout_seconds=0.01)
    assert live.held_bytes > 150 * 80 * 3
    result = run_scanned(segmenter, live, lambda: push_all(live, rgb, [(0, 0, 80, 600)]))
    assert_same(result, collect(segmenter.stream(ArraySlide(rgb, 0.5), probabilities=True)))


def test_what_would_wait_for_itself_is_refused_and_nothing_is_lost(segmenter: Segmenter) -> None:
    rgb, live = noise(900, 80), LiveSlide(80, 900, 0.5, max_bytes=200 * 80 * 4)

    def scan() -> None:
        with pytest.raises(SlideError, match=r"the run waits for columns 0 to \d+ of rows 0 to"):
            live.push(0, 300, rgb[300:600])
        push_all(live, rgb, cut(80, 900, 80, 30))

    live.push(0, 880, rgb[880:])
    with segmenter.stream(live, probabilities=True) as bands, ThreadPoolExecutor(2) as pool:
        result = pool.submit(collect, bands)
        pool.submit(scan).result()
        assert_same(result.result(), collect(segmenter.stream(ArraySlide(rgb, 0.5), probabilities=True)))


# the end, good or bad


def scan_until_stuck(live: LiveSlide) -> None:
    with live:
        live.push(0, 0, noise(200, 80))
        raise RuntimeError("the stage is stuck")


def test_an_aborted_scan_fails_its_run_and_leaves_nothing(segmenter: Segmenter, tmp_path: Path) -> None:
    live = LiveSlide(80, 500, 0.5)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(segmenter.segment, live, tmp_path / "out")
        with pytest.raises(RuntimeError, match="stage"):
            scan_until_stuck(live)
        with pytest.raises(SlideError, match=r"aborted .*the stage is stuck"):
            run.result()
    assert histoseg_threads() == []
    assert list(tmp_path.iterdir()) == []
    assert live.held_bytes == 0
    with pytest.raises(SlideError, match="aborted"):
        live.push(0, 0, noise(1, 1))
    with pytest.raises(SlideError, match="aborted"):
        live.finish()
    with pytest.raises(SlideError, match="aborted"):
        next(segmenter.stream(live))


@pytest.mark.parametrize("rows", [0, 64, 300])
def test_a_run_that_waits_for_pixels_is_cancelled(segmenter: Segmenter, rows: int, tmp_path: Path) -> None:
    live, cancel = LiveSlide(80, 500, 0.5), threading.Event()
    if rows:
        live.push(0, 0, noise(rows, 80))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(segmenter.segment, live, tmp_path / "out", cancel=cancel)
        cancel.set()
        with pytest.raises(CancelledError):
            run.result()
    assert histoseg_threads() == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_waits_for_pixels_ends_at_its_deadline(segmenter: Segmenter) -> None:
    live = LiveSlide(80, 500, 0.5)
    live.push(0, 0, noise(100, 80))
    with pytest.raises(DeadlineError, match=r"the deadline of 0\.3 s passed"):
        list(segmenter.stream(live, deadline_seconds=0.3))
    assert histoseg_threads() == []
    with pytest.raises(CancelledError, match="push no more"):
        live.push(0, 100, noise(100, 80))
    with pytest.raises(CancelledError):
        live.finish()


def test_a_stream_that_is_left_lets_the_scanner_know(open_model) -> None:
    live = LiveSlide(80, 3000, 0.5, max_bytes=200 * 80 * 4)
    segmenter = Segmenter(open_model("unet"), options=RunOptions(batch_size=1))
    with ThreadPoolExecutor(1) as pool:
        scanned = pool.submit(push_all, live, noise(3000, 80), cut(80, 3000, 80, 20))
        with segmenter.stream(live) as bands:
            next(bands)
        with pytest.raises(CancelledError):
            scanned.result()
    assert histoseg_threads() == []
    assert live.held_bytes == 0


def test_a_live_slide_runs_once(segmenter: Segmenter) -> None:
    live = LiveSlide(80, 100, 0.5)
    push_all(live, noise(100, 80), [(0, 0, 80, 100)])
    assert len(list(segmenter.stream(live))) > 0
    with pytest.raises(SlideError, match="runs once"):
        next(segmenter.stream(live))


# what is refused


@pytest.mark.parametrize(
    ("x", "y", "rgb"),
    [
        (0, 0, np.zeros((5, 5), np.uint8)),
        (0, 0, np.zeros((5, 5, 4), np.uint8)),
        (0, 0, np.zeros((5, 5, 3), np.float32)),
        (0, 0, np.zeros((0, 5, 3), np.uint8)),
        (-1, 0, np.zeros((5, 5, 3), np.uint8)),
        (0, 96, np.zeros((5, 5, 3), np.uint8)),
        (76, 0, np.zeros((5, 5, 3), np.uint8)),
    ],
)
def test_pixels_that_do_not_fit_are_refused(x: int, y: int, rgb: np.ndarray) -> None:
    live = LiveSlide(80, 100, 0.5)
    with pytest.raises(SlideError, match=r"live: pushed .*, expected"):
        live.push(x, y, rgb)
    assert live.held_bytes == 0


def test_pixels_after_the_end_are_refused() -> None:
    live = LiveSlide(80, 100, 0.5)
    assert live.finish() == 8000
    assert live.finish() == 8000
    with pytest.raises(SlideError, match="after finish"):
        live.push(0, 0, noise(1, 1))


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_slide_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(SlideError, match="expected at least 1 x 1"):
        LiveSlide(*size, 0.5)


def test_too_small_a_bound_is_refused_at_once(segmenter: Segmenter) -> None:
    with pytest.raises(SlideError, match="max_bytes is 1000, expected at least"):
        LiveSlide(80, 500, 0.5, max_bytes=1000)
    live = LiveSlide(80, 500, 0.5, max_bytes=80 * 80 * 4)
    with pytest.raises(OptionError, match="max_bytes is 0 MiB, expected at least"):
        next(segmenter.stream(live))


def test_panels_are_refused(open_model) -> None:
    segmenter = Segmenter(open_model("unet"), options=RunOptions(max_memory=1 << 30))
    with pytest.raises(OptionError, match=r"max_memory .* live slide"):
        next(segmenter.stream(LiveSlide(80, 100, 0.5)))
