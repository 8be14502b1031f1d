from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from defusedxml.ElementTree import fromstring
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.outputs.ome import NAMESPACE
from histoseg.outputs.probabilities import ProbabilityPyramid, halve_probabilities, quantize_probabilities

COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff7f")
NAMES = ("background", "R&D <b>", 'the "third"', "µ")
value_arrays = hnp.arrays(np.uint8, st.tuples(st.integers(1, 13), st.integers(1, 13)))


def write(path: Path, values: np.ndarray, cuts: list[int]) -> Path:
    """Write values in bands that end at `cuts`."""
    height, width, classes = values.shape
    with ProbabilityPyramid(
        path, (width, height), (0.5, 0.5), names=NAMES[:classes], colors=COLORS[:classes]
    ) as pyramid:
        top = 0
        for bottom in [*sorted(set(cuts) & set(range(1, height))), height]:
            pyramid.add(top, values[top:bottom])
            top = bottom
        pyramid.close()
    return path


def make_values(size: tuple[int, int], classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size[1], size[0], classes), dtype=np.uint8)


@given(value_arrays)
def test_halving_takes_the_mean(values: np.ndarray) -> None:
    halved = halve_probabilities(values)
    height, width = values.shape
    assert halved.shape == ((height + 1) // 2, (width + 1) // 2)
    assert halved.dtype == np.uint8
    for y, x in np.ndindex(halved.shape):
        rows = [min(2 * y + dy, height - 1) for dy in (0, 1)]
        columns = [min(2 * x + dx, width - 1) for dx in (0, 1)]
        mean = np.mean([values[r, c] for r in rows for c in columns])
        assert -0.5 < halved[y, x] - mean <= 0.5


@given(hnp.arrays(np.float32, hnp.array_shapes(max_side=6), elements=st.floats(0, 1, width=32)))
def test_a_byte_is_at_most_half_a_step_off(probabilities: np.ndarray) -> None:
    values = quantize_probabilities(probabilities)
    assert values.dtype == np.uint8
    assert np.abs(values / 255 - probabilities).max() <= 0.5 / 255 + 1e-7


def test_rounding_goes_to_the_nearest_and_never_around() -> None:
    given_values = np.array([0, 1, 0.5, 1.0000001, -1e-7, 0.1, 0.9], np.float32)
    assert quantize_probabilities(given_values).tolist() == [0, 255, 128, 255, 0, 26, 230]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(1, 1), (3, 700), (257, 513), (600, 1100), (255, 1)]),
    st.integers(2, 4),
    st.lists(st.integers(1, 1100), max_size=8),
    st.integers(0, 9),
)
def test_each_level_is_the_mean_of_the_one_above_in_every_reader(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], classes: int, cuts: list[int], seed: int
) -> None:
    values = make_values(size, classes, seed)
    path = write(tmp_path_factory.mktemp("probabilities") / "a.tif", values, cuts)
    channels = [values[..., index] for index in range(1 if classes == 2 else 0, classes)]
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as tif:
        for index, level in enumerate(tif.series[0].levels):
            expected = np.stack(channels)
            np.testing.assert_array_equal(level.asarray().reshape(expected.shape), expected)
            whole = slide.read_region((0, 0), index, slide.level_dimensions[index])
            np.testing.assert_array_equal(np.asarray(whole)[..., 0], channels[0])
            channels = [halve_probabilities(channel) for channel in channels]


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_channels_are_named_and_coloured_as_classes(tmp_path: Path, classes: int) -> None:
    path = write(tmp_path / "a.tif", make_values((30, 20), classes), [])
    root = fromstring(tifffile.TiffFile(path).ome_metadata)
    channels = [(c.get("Name"), c.get("Color")) for c in root.iter(f"{{{NAMESPACE}}}Channel")]
    numbers = ["-1", str(0xD98CB3FF - 2**32), str(0x4B2E83FF), str(0x00FF7FFF)]
    first = 1 if classes == 2 else 0
    assert channels == list(zip(NAMES, numbers, strict=True))[first:classes]


def test_two_classes_are_one_channel_of_the_second(tmp_path: Path) -> None:
    values = make_values((300, 200), 2)
    path = write(tmp_path / "a.tif", values, [])
    np.testing.assert_array_equal(tifffile.imread(path), values[..., 1])
