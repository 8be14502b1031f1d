from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histoseg.resample import average_areas, reflect_indices


@given(st.integers(-100, 100), st.integers(1, 100), st.integers(1, 30))
def test_reflected_indices_equal_those_of_numpy(start: int, count: int, length: int) -> None:
    before, after = max(0, -start), max(0, start + count - length)
    expected = np.pad(np.arange(length), (before, after), mode="reflect")[start + before :][:count]
    np.testing.assert_array_equal(reflect_indices(start, count, length), expected)


def cut(rgb: np.ndarray, m_x: int, m_y: int, size: tuple[int, int], span: tuple[float, float]) -> np.ndarray:
    """Average the areas of a window, from the level pixels that it covers alone."""
    (width, height), (span_x, span_y) = size, span
    left, top = math.floor(m_x * span_x), math.floor(m_y * span_y)
    right, bottom = math.ceil((m_x + width) * span_x), math.ceil((m_y + height) * span_y)
    return average_areas(rgb[top:bottom, left:right], (left, top), (m_x, m_y), span, size)


@given(st.floats(0.3, 5), st.floats(0.3, 5), st.integers(0, 2**32 - 1), st.data())
def test_areas_do_not_depend_on_how_the_slide_is_cut(
    span_x: float, span_y: float, seed: int, data: st.DataObject
) -> None:
    """To the last bit, for spans of which no double is exact; more rows than one slab holds."""
    rgb = np.random.default_rng(seed).integers(0, 256, (150, 90, 3), dtype=np.uint8)
    width, height = math.ceil(90 / span_x - 1e-6), math.ceil(150 / span_y - 1e-6)
    whole = average_areas(rgb, (0, 0), (0, 0), (span_x, span_y), (width, height))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    np.testing.assert_array_equal(cut(rgb, x, y, (w, h), (span_x, span_y)), whole[y : y + h, x : x + w])


@given(st.floats(0.3, 5), st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 255))
def test_a_flat_area_stays_flat_far_from_the_slides_corner(
    span: float, m_x: int, count: int, value: int
) -> None:
    left, right = math.floor(m_x * span), math.ceil((m_x + count) * span)
    rgb = np.full((4, right - left, 3), value, np.uint8)
    means = average_areas(rgb, (left, 0), (m_x, 0), (span, 1.0), (count, 4))
    assert (means == value).all()


def test_areas_weigh_pixels_by_their_share() -> None:
    rgb = np.zeros((1, 3, 3), np.uint8)
    rgb[0, :, 0] = (10, 40, 200)
    means = average_areas(rgb, (0, 0), (0, 0), (1.5, 1.0), (2, 1))
    assert means[0, :, 0].tolist() == [20, 147]  # (10 + 40 / 2) / 1.5 and (40 / 2 + 200) / 1.5
