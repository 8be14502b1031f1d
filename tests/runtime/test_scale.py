from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.demo import write_pyramid
from histoseg.errors import SpacingError
from histoseg.scale import ScaledSlide, plan_scale
from histoseg.slide import ArraySlide, open_slide

MODEL_UM_PX = 0.5
TOLERANCE = 0.05


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def see(slide: object, *, force: bool = False, spacing: float = MODEL_UM_PX) -> ScaledSlide:
    return ScaledSlide(slide, plan_scale(slide, spacing, tolerance=TOLERANCE, force=force))


class LevelSizes:
    """A slide of which only the geometry is asked."""

    def __init__(self, sizes: Sequence[tuple[int, int]], spacing: tuple[float, float]) -> None:
        self.name = "levels"
        self.level_sizes = tuple(sizes)
        self.spacing_um_px = spacing

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        raise AssertionError("no pixels here")


def average_area(values: np.ndarray, axis: int, count: int, span: float) -> np.ndarray:
    """Average `[i * span, (i + 1) * span)` of an axis in float64: slow, plain."""
    values = np.moveaxis(values.astype(np.float64), axis, 0)
    result = np.empty((count, *values.shape[1:]))
    for i in range(count):
        begin, end = i * span, min((i + 1) * span, len(values))
        shares = np.clip(
            np.minimum(np.arange(len(values)) + 1, end) - np.maximum(np.arange(len(values)), begin), 0, 1
        )
        result[i] = np.tensordot(shares / shares.sum(), values, axes=1)
    return np.moveaxis(result, 0, axis)


# Whole, within the tolerance of whole, fractional, barely coarser, and very fine.
spacings = st.sampled_from([0.5, 0.49, 0.26, 0.25, 0.125, 0.3, 0.2, 0.17, 0.46, 0.499, 0.1, 1 / 3])


sides = st.integers(1, 40)


@given(sides, sides, spacings, spacings, st.data())
def test_two_overlapping_reads_of_one_pixel_agree(
    width: int, height: int, um_x: float, um_y: float, data: st.DataObject
) -> None:
    scaled = see(ArraySlide(noise(height, width), (um_x, um_y)))
    m_width, m_height = scaled.m_size
    whole = scaled.read(0, 0, m_width, m_height)
    x = data.draw(st.integers(0, m_width - 1))
    y = data.draw(st.integers(0, m_height - 1))
    w = data.draw(st.integers(1, m_width - x))
    h = data.draw(st.integers(1, m_height - y))
    np.testing.assert_array_equal(scaled.read(x, y, w, h), whole[y : y + h, x : x + w])


@pytest.mark.parametrize("size", [(1024, 768), (1001, 777), (1003, 513)])
def test_overlapping_reads_of_a_lower_level_agree(tmp_path: Path, size: tuple[int, int]) -> None:
    """Odd sizes give OpenSlide a fractional downsample, at which it shifts pixels by parts of one."""
    write_pyramid(tmp_path / "odd.tif", noise(size[1], size[0]), 0.25)
    with open_slide(tmp_path / "odd.tif") as slide:
        scaled = see(slide)
        assert scaled.scale.level == 1
        whole = scaled.read(0, 0, *scaled.m_size)
        for x, y in [(10, 20), (100, 50), (250, 100), (317, 181)]:
            np.testing.assert_array_equal(scaled.read(x, y, 64, 64), whole[y : y + 64, x : x + 64])


def read_and_reference(
    rgb: np.ndarray, um_px: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return a whole slide at the model's um/px, its float reference, and how many pixels are uncut."""
    scaled = see(ArraySlide(rgb, um_px))
    (m_width, m_height), spans = scaled.m_size, scaled.scale.level_per_m
    expected = average_area(average_area(rgb, 0, m_height, spans[1]), 1, m_width, spans[0])
    uncut = [int(rgb.shape[1 - axis] / spans[axis] + 1e-9) for axis in (0, 1)]
    return scaled.read(0, 0, m_width, m_height), expected, uncut


@given(sides, sides, spacings, spacings)
def test_area_mean_equals_a_float_reference(width: int, height: int, um_x: float, um_y: float) -> None:
    read, expected, (columns, rows) = read_and_reference(noise(height, width), (um_x, um_y))
    difference = np.abs(read - expected)[:rows, :columns]
    assert difference.max(initial=0) <= 0.5 + 1e-3


@pytest.mark.parametrize("um_px", [0.25, 0.1, 0.3, 0.17])
def test_a_last_pixel_cut_by_the_border_is_the_mean_of_what_it_covers(um_px: float) -> None:
    read, expected, uncut = read_and_reference(noise(33, 41), (um_px, um_px))
    assert uncut != [read.shape[1], read.shape[0]]
    assert np.abs(read - expected).max() <= 0.5 + 1e-3


@given(sides, sides, st.integers(0, 255))
def test_a_flat_slide_stays_flat_at_every_scale(width: int, height: int, value: int) -> None:
    scaled = see(ArraySlide(np.full((height, width, 3), value, np.uint8), (0.3, 0.17)))
    assert (scaled.read(-5, -7, 50, 50) == value).all()


@given(sides, sides, st.sampled_from([0.5, 0.48, 0.4999, 0.5249]))
def test_within_the_tolerance_level_pixels_stay_untouched(width: int, height: int, um_px: float) -> None:
    rgb = noise(height, width)
    scaled = see(ArraySlide(rgb, um_px))
    assert scaled.m_size == (width, height)
    assert scaled.scale.level_per_m == (1.0, 1.0)
    np.testing.assert_array_equal(scaled.read(0, 0, width, height), rgb)
    assert scaled.scale.spacing_um_px == pytest.approx((um_px, um_px))


@pytest.mark.parametrize("um_px", [0.25, 0.2525, 0.24])
def test_half_the_spacing_averages_blocks_of_two_by_two(um_px: float) -> None:
    rgb = noise(20, 30)
    scaled = see(ArraySlide(rgb, um_px))
    assert scaled.m_size == (15, 10)
    expected = rgb.reshape(10, 2, 15, 2, 3).mean(axis=(1, 3))
    assert np.abs(scaled.read(0, 0, 15, 10) - expected).max() <= 0.5


def test_spacings_of_x_and_y_are_kept_apart() -> None:
    rgb = noise(12, 40)
    scaled = see(ArraySlide(rgb, (0.25, 0.5)))
    assert scaled.m_size == (20, 12)
    np.testing.assert_allclose(scaled.read(0, 0, 20, 12), rgb.reshape(12, 20, 2, 3).mean(axis=2), atol=0.5)


def test_a_partly_covered_last_pixel_counts() -> None:
    scaled = see(ArraySlide(noise(9, 7), 0.25))
    assert scaled.m_size == (4, 5)
    assert scaled.read(0, 0, 4, 5).shape == (5, 4, 3)


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(-60, 40),
    st.integers(-60, 40),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_outside_the_slide_pixels_mirror_those_inside(
    width: int, height: int, m_x: int, m_y: int, w: int, h: int
) -> None:
    rgb = noise(height, width)
    before, after = (max(0, -m_y), max(0, -m_x)), (max(0, m_y + h - height), max(0, m_x + w - width))
    padded = np.pad(rgb, ((before[0], after[0]), (before[1], after[1]), (0, 0)), mode="reflect")
    top, left = m_y + before[0], m_x + before[1]
    read = see(ArraySlide(rgb, MODEL_UM_PX)).read(m_x, m_y, w, h)
    np.testing.assert_array_equal(read, padded[top : top + h, left : left + w])


@given(spacings, st.data())
def test_reads_outside_are_reflected_at_the_models_scale(um_px: float, data: st.DataObject) -> None:
    scaled = see(ArraySlide(noise(23, 31), um_px))
    m_width, m_height = scaled.m_size
    whole = scaled.read(0, 0, m_width, m_height)
    pad = data.draw(st.integers(1, 50))
    np.testing.assert_array_equal(
        scaled.read(-pad, -pad, m_width + 2 * pad, m_height + 2 * pad),
        np.pad(whole, ((pad, pad), (pad, pad), (0, 0)), mode="reflect"),
    )


@given(
    st.lists(st.sampled_from([2, 4]), max_size=4),
    st.sampled_from([0.1, 0.12, 0.24, 0.25, 0.4, 0.5]),
    st.sampled_from([1.0, 0.8]),
    st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.1]),
)
def test_the_level_read_is_the_cheapest_one_fine_enough(
    steps: list[int], l0_um: float, stretch: float, model_um: float
) -> None:
    downsamples = np.cumprod([1, *steps])
    slide = LevelSizes([(8192 // d, 6144 // d) for d in downsamples], (l0_um, l0_um * stretch))
    if l0_um > model_um * 1.05:
        return
    scale = plan_scale(slide, model_um, tolerance=TOLERANCE)
    fine_enough = [d * l0_um <= model_um / (1 - TOLERANCE) + 1e-9 for d in downsamples]
    assert fine_enough[scale.level]
    assert not any(fine_enough[scale.level + 1 :])
    covered = scale.m_size[0] * scale.spacing_um_px[0]
    assert covered == pytest.approx(8192 * l0_um, rel=0.01, abs=model_um * 1.1)
    for used in scale.spacing_um_px:
        assert abs(used / model_um - 1) <= TOLERANCE + 1e-6


def test_too_coarse_a_slide_is_refused_with_both_spacings_and_the_flag() -> None:
    with pytest.raises(SpacingError) as caught:
        see(ArraySlide(noise(4, 4), 1.01))
    for word in ("1.01 um/px", "0.5 um/px", "--allow-coarse", "array"):
        assert word in str(caught.value)


def test_one_coarse_axis_is_enough_to_refuse() -> None:
    for spacing in [(0.5, 1.0), (1.0, 0.5)]:
        with pytest.raises(SpacingError, match="1 um/px"):
            see(ArraySlide(noise(4, 4), spacing))


def test_a_slide_without_spacing_is_refused_with_the_flag() -> None:
    with pytest.raises(SpacingError) as caught:
        see(ArraySlide(noise(4, 4), None))
    assert "--mpp" in str(caught.value)
    assert "0.5 um/px" in str(caught.value)


def test_mpp_overrides_what_the_slide_states() -> None:
    for stated in (None, 7.0, (0.1, 0.9)):
        scale = plan_scale(ArraySlide(noise(8, 12), stated), 0.5, tolerance=TOLERANCE, mpp=0.25)
        assert scale.m_size == (6, 4)


def test_force_enlarges_a_coarse_slide() -> None:
    rgb = noise(5, 6)
    scaled = see(ArraySlide(rgb, 1.0), force=True)
    assert scaled.m_size == (12, 10)
    np.testing.assert_array_equal(scaled.read(0, 0, 12, 10), rgb.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("spacing", [0.0, -0.5, float("nan"), float("inf"), (0.5, 0.0)])
def test_a_spacing_that_is_none_is_refused(spacing) -> None:
    slide = ArraySlide(np.zeros((8, 8, 3), np.uint8), spacing)
    with pytest.raises(SpacingError, match=r"expected more than 0; give it with --mpp"):
        plan_scale(slide, 0.5, tolerance=0.05)


def test_a_spacing_may_be_of_any_real_type() -> None:
    slide = ArraySlide(np.zeros((8, 8, 3), np.uint8), np.float32(0.5))
    assert slide.spacing_um_px == (0.5, 0.5)
