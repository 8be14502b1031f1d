from __future__ import annotations

import gc
import multiprocessing
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from histoseg.errors import SlideError
from histoseg.slide import FileSlide, open_slide

CHILDREN = 12
SECONDS = 60
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason=f"{sys.platform} does not fork"
)


def test_closing_waits_for_readers_and_refuses_new_ones(real_svs: Path) -> None:
    """OpenSlide aborts the whole process when a slide is closed under a reader."""
    slide, refused = open_slide(real_svs), []

    def read_on() -> None:
        try:
            while True:
                slide.read_level(0, 0, 0, 512, 512)
        except SlideError as error:
            refused.append(str(error))

    readers = [threading.Thread(target=read_on) for _ in range(4)]
    for reader in readers:
        reader.start()
    slide.close()
    for reader in readers:
        reader.join()
    assert len(refused) == 4
    assert all("is closed" in message for message in refused)


def test_a_slide_that_was_cut_off_is_named_for_what_it_is(real_svs: Path, tmp_path: Path) -> None:
    """The directories of an SVS lie behind the pixels."""
    path = tmp_path / "half.svs"
    whole = real_svs.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        SlideError, match=f"is cut off at {len(whole) // 2} bytes, expected .* at byte"
    ) as caught:
        open_slide(path)
    assert "copy it again" in str(caught.value)
    assert "vips" not in str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kept", [4, 40, 200])
def test_a_tiff_of_any_kind_is_cut_off_or_no_slide(tmp_path: Path, order: str, big: bool, kept: int) -> None:
    path = tmp_path / "cut.tif"
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, 100) if big else struct.pack(order + "HI", 42, 100)
    path.write_bytes((mark + head + bytes(300))[:kept])
    with pytest.raises(
        SlideError, match="expected a tiled slide" if kept > 100 else f"cut off at {kept} bytes"
    ):
        open_slide(path)


def test_closing_twice_is_closing_once(real_svs: Path) -> None:
    slide = open_slide(real_svs)
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="is closed"):
        slide.read_level(0, 0, 0, 1, 1)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to count open files in")
def test_a_slide_leaves_no_file_open(real_svs: Path) -> None:
    def count_open() -> int:
        return sum(real_svs.resolve() == file.resolve() for file in Path("/proc/self/fd").iterdir())

    with open_slide(real_svs) as slide:
        slide.read_level(0, 0, 0, 8, 8)
        assert count_open() > 0
    assert count_open() == 0
    forgotten = open_slide(real_svs)
    forgotten.read_level(0, 0, 0, 8, 8)
    del forgotten
    gc.collect()
    assert count_open() == 0


@contextmanager
def reading_threads(slide: FileSlide) -> Iterator[None]:
    """Keep four threads in OpenSlide, so that a fork finds its locks held."""
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            for x in range(0, 1000, 50):  # too small a region to be read past OpenSlide
                slide.read_level(0, x, 350, 80, 80)

    threads = [threading.Thread(target=read_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def run_children(work: Callable[[], None]) -> list[int | None]:
    """Fork children that do `work` and return their exit codes, `None` for one that hangs."""
    context = multiprocessing.get_context("fork")
    codes = []
    for _ in range(CHILDREN):
        child = context.Process(target=work)
        child.start()
        child.join(SECONDS)
        codes.append(child.exitcode)
        if child.exitcode is None:
            child.kill()
            child.join()
    return codes


@needs_fork
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", ["camelyon-jpeg.dcm", "cmu-1-small-region.svs"])
def test_a_forked_child_reads_the_parents_pixels(shared_data: Path, name: str) -> None:
    with open_slide(shared_data / "slides" / name) as slide:
        width, height = slide.level_sizes[0]
        expected = slide.read_level(0, 0, 0, width, height)

        def read_and_compare() -> None:
            for x, y in [(0, 0), (300, 200), (700, 500)]:
                np.testing.assert_array_equal(
                    slide.read_level(0, x, y, 200, 100), expected[y : y + 100, x : x + 200]
                )
            slide.close()
            with pytest.raises(SlideError, match="is closed"):
                slide.read_level(0, 0, 0, 1, 1)

        with reading_threads(slide):
            assert run_children(read_and_compare) == [0] * CHILDREN
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, width, height), expected)


@needs_fork
def test_a_slide_closed_before_the_fork_stays_closed(real_svs: Path) -> None:
    slide = open_slide(real_svs)
    slide.close()

    def read() -> None:
        with pytest.raises(SlideError, match="is closed"):
            slide.read_level(0, 0, 0, 1, 1)

    assert set(run_children(read)) == {0}
