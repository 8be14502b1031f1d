from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.errors import OutputError
from histoseg.outputs.labels import LabelPyramid, build_palette, halve_labels, plan_levels

COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff7f")
label_arrays = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 13), st.integers(1, 13)), elements=st.integers(0, 3)
)


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return labels with regions of some pixels and rough borders."""
    coarse = np.random.default_rng(seed).integers(0, 4, (height // 7 + 1, width // 7 + 1), dtype=np.uint8)
    labels = coarse.repeat(7, axis=0).repeat(7, axis=1)[:height, :width].copy()
    labels[::5, ::3] = seed % 4
    return labels


def write(path: Path, labels: np.ndarray, cuts: list[int], spacing: tuple[float, float] = (0.5, 0.5)) -> Path:
    """Write labels in bands that end at `cuts`."""
    pyramid = LabelPyramid(path, (labels.shape[1], labels.shape[0]), spacing, COLORS)
    top = 0
    for bottom in [*sorted(set(cuts) & set(range(1, len(labels)))), len(labels)]:
        pyramid.add(top, labels[top:bottom])
        top = bottom
    pyramid.close()
    return path


def read_levels(path: Path) -> list[np.ndarray]:
    with tifffile.TiffFile(path) as tif:
        return [page.asarray() for page in tif.pages]


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


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_levels_halve_until_they_fit_a_screen(width: int, height: int) -> None:
    sizes = plan_levels((width, height))
    assert sizes[0] == (width, height)
    for (w, h), (half_w, half_h) in pairwise(sizes):
        assert (half_w, half_h) == ((w + 1) // 2, (h + 1) // 2)
    assert max(sizes[-1]) <= 512
    assert all(max(size) > 512 for size in sizes[:-1])


@settings(max_examples=25)
@given(
    st.sampled_from([(1, 1), (3, 700), (257, 513), (600, 1100), (512, 512), (255, 1)]),
    st.lists(st.integers(1, 1100), max_size=8),
    st.integers(0, 9),
)
def test_levels_read_back_whatever_the_bands(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], cuts: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    labels = blobs(size[1], size[0], seed)
    path = write(folder / "labels.tif", labels, cuts)
    levels = read_levels(path)
    assert [(level.shape[1], level.shape[0]) for level in levels] == plan_levels(size)
    expected = labels
    for level in levels:
        np.testing.assert_array_equal(level, expected)
        expected = halve_labels(expected)
    assert path.read_bytes() == write(folder / "again.tif", labels, []).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["again.tif", "labels.tif"]


@pytest.mark.parametrize("size", [(1, 1), (1300, 700), (901, 1303)])
@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.499, 0.251), (28.97, 28.97)])
def test_openslide_opens_it_with_size_spacing_and_colours(
    tmp_path: Path, size: tuple[int, int], spacing: tuple[float, float]
) -> None:
    labels = blobs(size[1], size[0])
    path = write(tmp_path / "labels.tif", labels, [100, 300], spacing)
    with openslide.OpenSlide(str(path)) as slide:
        assert list(slide.level_dimensions) == plan_levels(size)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(spacing[0], rel=1e-4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(spacing[1], rel=1e-4)
        rgb = np.asarray(slide.read_region((0, 0), 0, size))[..., :3]
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLORS], np.uint8)
    np.testing.assert_array_equal(rgb, palette[labels])


def test_each_level_states_its_own_spacing(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.tif", blobs(1200, 1100), [], (0.5, 0.25))
    with tifffile.TiffFile(path) as tif:
        for index, page in enumerate(tif.pages):
            assert page.is_tiled
            assert page.tags["ResolutionUnit"].value == 3  # centimetres
            for tag, spacing in (("XResolution", 0.5), ("YResolution", 0.25)):
                top, bottom = page.tags[tag].value
                assert 1e4 * bottom / top == pytest.approx(spacing * 2**index, rel=1e-4)
            assert page.is_reduced == (index > 0)


def test_a_palette_holds_the_colours_at_16_bits_and_black_elsewhere() -> None:
    palette = build_palette(COLORS)
    assert palette.shape == (3, 256)
    assert palette.dtype == np.uint16
    np.testing.assert_array_equal(palette[:, 2], [0x4B4B, 0x2E2E, 0x8383])
    np.testing.assert_array_equal(palette[:, 0], [0xFFFF] * 3)
    assert not palette[:, len(COLORS) :].any()


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "labels.tif").mkdir()
    with pytest.raises(OutputError, match=r"labels\.tif"):
        write(tmp_path / "labels.tif", blobs(10, 10), [])
