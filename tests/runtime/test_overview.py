from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.overview import read_overview
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


def test_an_overview_read_in_strips_equals_one_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = ArraySlide(noise(400, 300), 0.5)
    whole = read_overview(slide, 100)
    monkeypatch.setattr("histoseg.overview.OVERVIEW_STRIP_PX", 300 * 40)
    strips = read_overview(slide, 100)
    assert np.abs(whole.astype(int) - strips).max() <= 1
