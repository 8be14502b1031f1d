from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import CancelledError
from histoseg.overview import OVERVIEW_BLOCK_PX, read_overview
from histoseg.slide import ArraySlide


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_an_overview_keeps_its_bound_and_the_slides_shape(width: int, height: int, longest: int) -> None:
    overview = read_overview(ArraySlide(np.full((height, width, 3), 77, np.uint8), 0.5), longest)
    assert max(overview.shape[:2]) <= max(longest, 1)
    assert (overview == 77).all()
    if max(width, height) <= longest:
        assert overview.shape[:2] == (height, width)


class CountedSlide:
    """A slide of one grey that notes the regions it is asked for."""

    name, spacing_um_px = "counted", None

    def __init__(
        self, width: int, height: int, cancel: threading.Event | None = None, after: int = 0
    ) -> None:
        self.level_sizes = ((width, height),)
        self.regions: list[tuple[int, int, int, int]] = []
        self._cancel, self._after = cancel, after

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        self.regions.append((x, y, width, height))
        if self._cancel and len(self.regions) >= self._after:
            self._cancel.set()
        return np.full((height, width, 3), 90, np.uint8)


def test_an_overview_read_in_blocks_equals_one_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = ArraySlide(noise(400, 300), 0.5)
    whole = read_overview(slide, 100)
    monkeypatch.setattr("histoseg.overview.OVERVIEW_BLOCK_PX", 40)
    np.testing.assert_array_equal(read_overview(slide, 100), whole)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.integers(1, 90))
def test_blocks_of_any_size_shift_a_picture_by_less_than_a_pixel(
    width: int, height: int, longest: int, block: int
) -> None:
    ramp = np.arange(width)[None, :, None] * 0.4 + np.arange(height)[:, None, None] * 0.4
    slide = ArraySlide(np.repeat(ramp, 3, axis=2).astype(np.uint8), 0.5)
    with pytest.MonkeyPatch.context() as patch:
        whole = read_overview(slide, longest).astype(int)
        patch.setattr("histoseg.overview.OVERVIEW_BLOCK_PX", block)
        assert np.abs(read_overview(slide, longest) - whole).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(40_000, 2048), (2048, 40_000), (9000, 9000), (40_000, 300)])
def test_a_slide_of_one_level_is_decoded_less_than_twice(width: int, height: int) -> None:
    """In tiles of 512 px, of which every region decodes those that it touches."""
    slide, decoded = CountedSlide(width, height), 0
    assert (read_overview(slide, 2048) == 90).all()
    for x, y, w, h in slide.regions:
        tiles = (-(-(x + w) // 512) - x // 512) * (-(-(y + h) // 512) - y // 512)
        assert w * h <= 2 * OVERVIEW_BLOCK_PX**2  # memory
        decoded += tiles
    assert decoded < 2 * (-(-width // 512) * -(-height // 512))
    assert sum(w * h for _, _, w, h in slide.regions) == width * height


def test_an_overview_that_is_cancelled_reads_no_further() -> None:
    cancel = threading.Event()
    slide = CountedSlide(40_000, 2048, cancel, after=3)
    with pytest.raises(CancelledError, match="cancelled while an overview of the slide was read"):
        read_overview(slide, 2048, cancel=cancel)
    assert len(slide.regions) == 3
