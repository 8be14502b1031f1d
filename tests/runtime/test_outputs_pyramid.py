"""What holds for both pyramids. How labels and probabilities shrink is tested with each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.errors import OutputError
from histoseg.outputs import tiff
from histoseg.outputs.labels import LabelPyramid
from histoseg.outputs.probabilities import ProbabilityPyramid
from histoseg.outputs.pyramid import plan_levels

COLORS, NAMES = ("#ffffff", "#d98cb3", "#4b2e83"), ("background", "R&D <b>", 'the "third"')
SIZES = [(1, 1), (3, 700), (257, 513), (600, 1100), (512, 512), (255, 1), (1025, 256)]

Open = Callable[[Path, tuple[int, int]], LabelPyramid | ProbabilityPyramid]


def open_labels(path: Path, size: tuple[int, int]) -> LabelPyramid:
    return LabelPyramid(path, size, (0.5, 0.25), COLORS, NAMES)


def open_probabilities(path: Path, size: tuple[int, int]) -> ProbabilityPyramid:
    return ProbabilityPyramid(path, size, (0.5, 0.25), names=NAMES, colors=COLORS)


both = pytest.mark.parametrize(
    ("open_it", "shape"), [(open_labels, ()), (open_probabilities, (3,))], ids=["labels", "probabilities"]
)


def make_values(size: tuple[int, int], shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 3, (size[1] // 9 + 1, size[0] // 9 + 1, *shape))
    return coarse.astype(np.uint8).repeat(9, axis=0).repeat(9, axis=1)[: size[1], : size[0]]


def write(path: Path, open_it: Open, values: np.ndarray, cuts: list[int] | None = None) -> Path:
    """Write values in bands that end at `cuts`."""
    with open_it(path, (values.shape[1], values.shape[0])) as pyramid:
        top = 0
        for bottom in [*sorted(set(cuts or ()) & set(range(1, len(values)))), len(values)]:
            pyramid.add(top, values[top:bottom])
            top = bottom
        pyramid.close()
    return path


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_levels_halve_until_they_fit_a_screen(width: int, height: int) -> None:
    sizes = plan_levels((width, height))
    assert sizes[0] == (width, height)
    for (w, h), (half_w, half_h) in pairwise(sizes):
        assert (half_w, half_h) == ((w + 1) // 2, (h + 1) // 2)
    assert max(sizes[-1]) <= 512
    assert all(max(size) > 512 for size in sizes[:-1])


@both
@settings(max_examples=12, deadline=None)
@given(size=st.sampled_from(SIZES), cuts=st.lists(st.integers(1, 1100), max_size=8), seed=st.integers(0, 9))
def test_the_same_values_give_the_same_bytes_whatever_the_bands(
    tmp_path_factory: pytest.TempPathFactory,
    open_it: Open,
    shape: tuple[int, ...],
    size: tuple[int, int],
    cuts: list[int],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("pyramid")
    values = make_values(size, shape, seed)
    one, other = (write(folder / name, open_it, values, c) for name, c in (("a.tif", cuts), ("b.tif", [])))
    assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["a.tif", "b.tif"]


@both
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_all_readers_find_all_levels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_it: Open,
    shape: tuple[int, ...],
    size: tuple[int, int],
    big: bool,
) -> None:
    monkeypatch.setattr(tiff, "BIG_ABOVE_BYTES", 0 if big else 1 << 30)
    values = make_values(size, shape)
    path, sizes = write(tmp_path / "a.tif", open_it, values), plan_levels(size)
    with tifffile.TiffFile(path) as tif:
        assert (tif.is_ome, tif.is_bigtiff) == (True, big)
        (series,) = tif.series
        found = [level.shape[-2:][::-1] for level in series.levels]
        np.testing.assert_array_equal(
            np.moveaxis(series.asarray(), 0, -1) if shape else series.asarray(), values
        )
    assert found == sizes
    with openslide.OpenSlide(path) as slide:
        assert list(slide.level_dimensions) == sizes


@both
def test_subdirectories_are_as_ome_tiff_wants_them(
    tmp_path: Path, open_it: Open, shape: tuple[int, ...]
) -> None:
    """Each channel leads the chain, with its levels from large to small, none of which is in the chain.

    Bio-Formats counts the directories that are not marked as reduced, and reads levels from SubIFDs.
    """
    path = write(tmp_path / "a.tif", open_it, make_values((1300, 2100), shape))
    sizes = plan_levels((1300, 2100))
    with tifffile.TiffFile(path) as tif:
        assert [page.is_reduced for page in tif.pages] == [False] * (shape or (1,))[0] + [True] * 3
        for page in tif.pages[: (shape or (1,))[0]]:
            assert [sub.shape[::-1] for sub in page.pages] == sizes[1:]
            assert all(sub.is_reduced and sub.is_tiled for sub in page.pages)
        assert [bool(page.description) for page in tif.pages] == [True] + [False] * (len(tif.pages) - 1)
        chain = {page.offset for page in tif.pages}
        assert not chain & {offset for page in tif.pages for offset in page.subifds or ()}


@both
def test_no_tile_is_in_the_file_twice(tmp_path: Path, open_it: Open, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.tif", open_it, make_values((1300, 2100), shape))
    with tifffile.TiffFile(path) as tif:
        planes = (shape or (1,))[0]
        subs = [sub for page in tif.pages[:planes] for sub in page.pages]
        tiles = dict(
            pair
            for page in [*tif.pages[:planes], *subs]
            for pair in zip(page.dataoffsets, page.databytecounts, strict=True)
        )
        for twin, sub in zip(tif.pages[planes:], subs[:3], strict=True):
            assert (twin.dataoffsets, twin.databytecounts) == (sub.dataoffsets, sub.databytecounts)
    ends = sorted((offset, offset + count) for offset, count in tiles.items())
    assert ends[0][0] == tiff.HEADER_BYTES
    assert all(end == begin for (_, end), (begin, _) in pairwise(ends))
    directories = path.stat().st_size - ends[-1][1]
    assert directories < 10_000 + 8 * len(tiles)


@both
def test_each_level_states_its_own_spacing(tmp_path: Path, open_it: Open, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.tif", open_it, make_values((1200, 1100), shape))
    with tifffile.TiffFile(path) as tif:
        for index, page in enumerate([tif.pages[0], *tif.pages[0].pages]):
            assert page.tags["ResolutionUnit"].value == 3  # centimetres
            for tag, spacing in (("XResolution", 0.5), ("YResolution", 0.25)):
                top, bottom = page.tags[tag].value
                assert 1e4 * bottom / top == spacing * 2**index


@both
@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.499, 0.251), (28.97, 28.97), (0.123456789, 1 / 3)])
def test_openslide_and_tifffile_agree_on_the_spacing(
    tmp_path: Path, open_it: Open, shape: tuple[int, ...], spacing: tuple[float, float]
) -> None:
    path = tmp_path / "a.tif"
    names = {"names": NAMES, "colors": COLORS}
    with (ProbabilityPyramid if shape else LabelPyramid)(path, (40, 30), spacing, **names) as pyramid:
        pyramid.add(0, make_values((40, 30), shape))
        pyramid.close()
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(spacing[0], rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(spacing[1], rel=1e-6)
    (pixels,) = (
        image["Pixels"] for image in [tifffile.xml2dict(tifffile.TiffFile(path).ome_metadata)["OME"]["Image"]]
    )
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == spacing


@both
def test_a_file_that_cannot_be_written_is_an_output_error(
    tmp_path: Path, open_it: Open, shape: tuple[int, ...]
) -> None:
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(OutputError, match=r"a\.tif: cannot be written"):
        write(tmp_path / "a.tif", open_it, make_values((10, 10), shape))


@both
def test_a_pyramid_that_is_left_unclosed_leaves_nothing(
    tmp_path: Path, open_it: Open, shape: tuple[int, ...]
) -> None:
    with open_it(tmp_path / "a.tif", (700, 700)) as pyramid:
        pyramid.add(0, make_values((700, 700), shape))
    assert not list(tmp_path.iterdir())
