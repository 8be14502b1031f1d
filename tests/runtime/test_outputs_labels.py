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
from PIL import Image

from histoseg.colors import parse_color
from histoseg.outputs.labels import LabelPyramid, build_palette, halve_labels
from histoseg.outputs.ome import NAMESPACE

COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff7f")
NAMES = ("background", "R&D <b>", 'the "third"', "µ")
PALETTE = np.array([parse_color(color) for color in COLORS], np.uint8)
label_arrays = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 13), st.integers(1, 13)), elements=st.integers(0, 3)
)


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return labels with regions of some pixels and rough borders."""
    coarse = np.random.default_rng(seed).integers(0, 4, (height // 7 + 1, width // 7 + 1), dtype=np.uint8)
    labels = coarse.repeat(7, axis=0).repeat(7, axis=1)[:height, :width].copy()
    labels[::5, ::3] = seed % 4
    return labels


def write(path: Path, labels: np.ndarray, cuts: list[int]) -> Path:
    """Write labels in bands that end at `cuts`."""
    with LabelPyramid(path, (labels.shape[1], labels.shape[0]), (0.5, 0.5), COLORS, NAMES) as pyramid:
        top = 0
        for bottom in [*sorted(set(cuts) & set(range(1, len(labels)))), len(labels)]:
            pyramid.add(top, labels[top:bottom])
            top = bottom
        pyramid.close()
    return path


@given(label_arrays)
def test_halving_takes_a_value_that_no_other_outnumbers(labels: np.ndarray) -> None:
    halved = halve_labels(labels)
    height, width = labels.shape
    assert halved.shape == ((height + 1) // 2, (width + 1) // 2)
    for y, x in np.ndindex(halved.shape):
        rows = [min(2 * y + dy, height - 1) for dy in (0, 1)]
        columns = [min(2 * x + dx, width - 1) for dx in (0, 1)]
        block = [labels[r, c] for r in rows for c in columns]
        assert block.count(halved[y, x]) == max(block.count(value) for value in block)


@given(label_arrays)
def test_halving_knows_no_class_by_name(labels: np.ndarray) -> None:
    order = np.array([2, 0, 3, 1], np.uint8)
    np.testing.assert_array_equal(halve_labels(order[labels]), order[halve_labels(labels)])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (3, 700), (257, 513), (600, 1100), (512, 512), (255, 1)]),
    st.lists(st.integers(1, 1100), max_size=8),
    st.integers(0, 9),
)
def test_each_level_is_the_majority_of_the_one_above_in_every_reader(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], cuts: list[int], seed: int
) -> None:
    expected = blobs(size[1], size[0], seed)
    path = write(tmp_path_factory.mktemp("labels") / "labels.tif", expected, cuts)
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as tif:
        for index, level in enumerate(tif.series[0].levels):
            np.testing.assert_array_equal(level.asarray(), expected)
            np.testing.assert_array_equal(tifffile.imread(path, key=index), expected)
            whole = slide.read_region((0, 0), index, slide.level_dimensions[index])
            np.testing.assert_array_equal(np.asarray(whole)[..., :3], PALETTE[expected])
            expected = halve_labels(expected)


@pytest.mark.parametrize("names", [NAMES, ()])
def test_ome_xml_names_channel_and_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "labels.tif"
    with LabelPyramid(path, (30, 20), (0.5, 0.25), COLORS, names) as pyramid:
        pyramid.add(0, blobs(20, 30))
        pyramid.close()
    root = fromstring(tifffile.TiffFile(path).ome_metadata)
    assert [channel.get("Name") for channel in root.iter(f"{{{NAMESPACE}}}Channel")] == ["class"]
    notes = {
        note.get("Namespace"): tuple(item.text for item in note.iter(f"{{{NAMESPACE}}}M"))
        for note in root.iter(f"{{{NAMESPACE}}}MapAnnotation")
    }
    expected = {"histoseg:class-names": names, "histoseg:class-colors": COLORS}
    assert notes == {key: value for key, value in expected.items() if value}


def test_a_picture_library_shows_the_palette(tmp_path: Path) -> None:
    labels = blobs(700, 600)
    with Image.open(write(tmp_path / "labels.tif", labels, [])) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), PALETTE[labels])


def test_a_palette_holds_the_colours_at_16_bits_and_black_elsewhere() -> None:
    palette = build_palette(COLORS)
    assert palette.shape == (3, 256)
    assert palette.dtype == np.uint16
    np.testing.assert_array_equal(palette[:, 2], [0x4B4B, 0x2E2E, 0x8383])
    np.testing.assert_array_equal(palette[:, 0], [0xFFFF] * 3)
    assert not palette[:, len(COLORS) :].any()
