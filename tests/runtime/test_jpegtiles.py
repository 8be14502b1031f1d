from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from histoseg.demo import write_pyramid
from histoseg.errors import SlideError
from histoseg.jpegtiles import JpegTiles, find_jpeg_tiles
from histoseg.slide import open_slide

TILE = 64


def picture(height: int, width: int) -> np.ndarray:
    """Return smooth colour with noise, which JPEG keeps, and chroma that is not the same everywhere."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], axis=-1) * 90 + 128
    noise = np.random.default_rng(0).normal(0, 9, (height, width, 3))
    return (waves + noise).clip(0, 255).astype(np.uint8)


def write_jpeg(path: Path, rgb: np.ndarray, *, photometric: str = "ycbcr", tile: int = TILE) -> Path:
    tifffile.imwrite(
        path, rgb, tile=(tile, tile), compression="jpeg", photometric=photometric, metadata=None
    )  # fmt: skip
    return path


def find(path: Path) -> tuple[JpegTiles | None, ...]:
    with openslide.OpenSlide(str(path)) as slide:
        return find_jpeg_tiles(path, slide.properties["openslide.vendor"], slide.level_dimensions)


def read_openslide(path: Path, level: int = 0) -> np.ndarray:
    """Return a whole level as OpenSlide gives it, which must be opaque."""
    with openslide.OpenSlide(str(path)) as slide:
        rgba = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
    assert rgba[..., 3].min() == 255
    return rgba[..., :3]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jpeg(tmp_path_factory.mktemp("jpeg") / "tiled.tif", picture(331, 277))


@given(st.data())
def test_any_region_equals_openslides(tiled: Path, data: st.DataObject) -> None:
    (tiles,) = find(tiled)
    assert tiles is not None
    whole = read_openslide(tiled)
    x, y = data.draw(st.integers(0, 276)), data.draw(st.integers(0, 330))
    width, height = data.draw(st.integers(1, 277 - x)), data.draw(st.integers(1, 331 - y))
    with tiled.open("rb") as file:
        region = tiles.read(file.fileno(), x, y, width, height)
    assert region is not None
    np.testing.assert_array_equal(region, whole[y : y + height, x : x + width])


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_both_colour_spaces_equal_openslides(tmp_path: Path, photometric: str) -> None:
    path = write_jpeg(tmp_path / "a.tif", picture(128, 192), photometric=photometric)
    (tiles,) = find(path)
    assert tiles is not None
    with path.open("rb") as file:
        np.testing.assert_array_equal(tiles.read(file.fileno(), 0, 0, 192, 128), read_openslide(path))


def test_every_level_of_a_pyramid_equals_openslides(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    write_pyramid(path, picture(1003, 1501), 0.25)
    levels = find(path)
    assert len(levels) > 1
    with path.open("rb") as file:
        for level, tiles in enumerate(levels):
            assert tiles is not None
            np.testing.assert_array_equal(
                tiles.read(file.fileno(), 0, 0, *tiles.size), read_openslide(path, level)
            )


@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "small.svs"])
def test_real_slides_equal_openslides(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    (tiles,) = find(path)
    assert tiles is not None
    with path.open("rb") as file:
        np.testing.assert_array_equal(tiles.read(file.fileno(), 0, 0, *tiles.size), read_openslide(path))


@pytest.mark.parametrize(
    "name", ["boxes.tiff", "yb10kx5k.zstd.tiff", "small_la.tiff", "sm_image.dcm", "camelyon-jpeg.dcm"]
)
def test_other_files_are_left_to_openslide(shared_data: Path, name: str) -> None:
    assert set(find(shared_data / "slides" / name)) == {None}


def test_a_level_with_tiles_left_out_is_left_to_openslide(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "holes.tif", picture(128, 128))
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = tif.pages[0].tags["TileByteCounts"]
        counts.overwrite((0, *counts.value[1:]))
    assert find(path) == (None,)
    with open_slide(path) as slide:
        assert (slide.read_level(0, 0, 0, TILE, TILE) == 255).all()


@pytest.mark.parametrize("length", [1, 2**31, 2**32 - 1])
def test_a_tile_of_impossible_length_is_left_to_openslide(tmp_path: Path, length: int) -> None:
    path = write_jpeg(tmp_path / "a.tif", picture(128, 128))
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = tif.pages[0].tags["TileByteCounts"]
        counts.overwrite((length, *counts.value[1:]))
    with open_slide(path) as slide, pytest.raises(SlideError, match="damaged"):
        slide.read_level(0, 0, 0, 128, 128)


def test_a_tile_that_decodes_to_another_size_is_left_to_openslide(tmp_path: Path) -> None:
    """Its header may claim 12 GB."""
    path = write_jpeg(tmp_path / "a.tif", picture(128, 128))
    (tiles,) = find(path)
    assert tiles is not None
    data = bytearray(path.read_bytes())
    size = data.index(b"\xff\xc0", int(tiles.offsets[0, 0])) + 5
    data[size : size + 4] = b"\xff\xdc\xff\xdc"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert tiles.read(file.fileno(), 0, 0, TILE, TILE) is None
        assert tiles.read(file.fileno(), TILE, 0, TILE, TILE) is not None


def test_two_directories_of_one_size_are_left_to_openslide(tmp_path: Path) -> None:
    """Which one is the level is OpenSlide's to say."""
    with tifffile.TiffWriter(tmp_path / "twice.tif") as tif:
        for rgb in (picture(128, 128), 255 - picture(128, 128)):
            tif.write(rgb, tile=(TILE, TILE), compression="jpeg", photometric="ycbcr", metadata=None)
    assert find(tmp_path / "twice.tif") == (None,)


def damage(path: Path, kind: str) -> None:
    """Spoil the middle tile of a slide of three tiles."""
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    data = bytearray(path.read_bytes())
    half, end = offset + length // 2, offset + length
    if kind == "zeros":
        data[half : half + 200] = bytes(200)
    elif kind == "ones":
        data[half : half + 200] = b"\xff" * 200
    elif kind == "end":
        data[half:end] = bytes(end - half)
    elif kind == "all":
        data[offset:end] = bytes(length)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["zeros", "ones", "end", "all"])
def test_holes_in_a_file_are_left_to_openslide(tmp_path: Path, kind: str) -> None:
    path = write_jpeg(tmp_path / "a.tif", picture(TILE, 3 * TILE))
    whole = read_openslide(path)
    damage(path, kind)
    (tiles,) = find(path)
    assert tiles is not None
    with path.open("rb") as file:
        assert tiles.read(file.fileno(), TILE, 0, TILE, TILE) is None
        assert tiles.read(file.fileno(), 0, 0, 3 * TILE, TILE) is None
        for x in (0, 2 * TILE):
            np.testing.assert_array_equal(tiles.read(file.fileno(), x, 0, TILE, TILE), whole[:, x : x + TILE])


def test_a_file_that_ends_too_early_is_left_to_openslide(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.tif", picture(TILE, TILE))
    (tiles,) = find(path)
    assert tiles is not None
    path.write_bytes(path.read_bytes()[: int(tiles.offsets[0, 0]) + 100])
    with path.open("rb") as file:
        assert tiles.read(file.fileno(), 0, 0, TILE, TILE) is None


def test_a_file_that_cannot_be_read_here_is_left_to_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    path = write_jpeg(tmp_path / "a.tif", picture(TILE, TILE))
    monkeypatch.setattr("os.pread", fail)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, TILE, TILE), read_openslide(path))


def test_small_regions_of_large_tiles_are_left_to_openslide_and_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(JpegTiles, "read", lambda _, *region: asked.append(region[1:]))
    with open_slide(write_jpeg(tmp_path / "a.tif", picture(512, 512), tile=256)) as slide:
        slide.read_level(0, 200, 200, 100, 100)  # 4 tiles for less than a sixth of one
        assert asked == []
        slide.read_level(0, 100, 100, 300, 300)
        assert asked == [(100, 100, 300, 300)]


def test_a_fractional_level_has_one_reader_for_all_regions(tmp_path: Path) -> None:
    """OpenSlide shifts pixels there by parts of one."""
    rgb = picture(601, 401)
    with tifffile.TiffWriter(tmp_path / "odd.tif") as tif:
        for step, kind in ((1, 0), (3, 1)):
            tif.write(
                np.ascontiguousarray(rgb[::step, ::step]), tile=(256, 256), compression="jpeg",
                photometric="ycbcr", subfiletype=kind, metadata=None,
            )  # fmt: skip
    with open_slide(tmp_path / "odd.tif") as slide:
        width, height = slide.level_sizes[1]
        whole = slide.read_level(1, 0, 0, width, height)
        for x, y, w, h in [(0, 0, 5, 5), (77, 33, 8, 9), (10, 20, 110, 150)]:
            np.testing.assert_array_equal(slide.read_level(1, x, y, w, h), whole[y : y + h, x : x + w])
