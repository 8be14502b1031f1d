from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.card import TransformStep
from histoseg.transform import NORMALIZATIONS, apply_transform

pixels = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.just(3)))
triples = st.tuples(*[st.floats(0.125, 2)] * 3)
steps = st.lists(st.builds(TransformStep, st.floats(0.001, 2), triples, triples), max_size=3)


@given(pixels, steps)
def test_steps_apply_one_after_another(rgb: np.ndarray, chosen: list[TransformStep]) -> None:
    expected = rgb.astype(np.float64)
    for step in chosen:
        expected = (expected * step.scale - np.array(step.mean)) / np.array(step.std)
    before = rgb.copy()
    result = apply_transform(rgb, chosen)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(rgb, before)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("unit", (0, 0, 0), (1, 1, 1)),
        ("symmetric", (-1, -1, -1), (1, 1, 1)),
        ("none", (0, 0, 0), (255, 255, 255)),
        # blue, green, red: the mean of ImageNet in that order, taken off
        ("caffe", (-103.939, -116.779, -123.68), (151.061, 138.221, 131.32)),
        # what torchvision's transforms give for black and white
        ("imagenet", (-2.117904, -2.035714, -1.804444), (2.248908, 2.428571, 2.64)),
    ],
)
def test_black_and_white_map_to_the_ends_of_the_range(name: str, low: tuple, high: tuple) -> None:
    ends = apply_transform(np.array([[0, 0, 0], [255, 255, 255]], np.uint8), [NORMALIZATIONS[name]])
    np.testing.assert_allclose(ends, [low, high], atol=1e-5)


def test_caffe_turns_the_order_of_channels() -> None:
    red = apply_transform(np.array([[255, 0, 0]], np.uint8), [NORMALIZATIONS["caffe"]])
    np.testing.assert_allclose(red, [[-103.939, -116.779, 131.32]], atol=1e-4)
