from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.errors import TruthError
from histoseg.truth import TruthMask


def random_mask(height: int, width: int, classes: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def write(path: Path, values: np.ndarray, **tiff: object) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, **tiff)
    else:
        assert cv2.imwrite(str(path), values)
    return path


def read_all(path: Path, m_size: tuple[int, int], classes: int = 2) -> np.ndarray:
    return TruthMask(path, m_size, classes).read(0, m_size[1])


PALETTE = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
FORMS = {
    "png": (".png", {}),
    "stripped": (".tif", {"rowsperstrip": 7}),
    "one-strip": (".tif", {}),
    "tiled": (".tif", {"tile": (32, 48)}),
    "tiled-deflate": (".tif", {"tile": (64, 64), "compression": "adobe_deflate"}),
    "stripped-deflate": (".tif", {"rowsperstrip": 16, "compression": "adobe_deflate"}),
    "palette": (".tif", {"tile": (64, 64), "photometric": "palette", "colormap": PALETTE}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [2, 5])
def test_index_masks_read_as_they_are(tmp_path: Path, form: str, classes: int) -> None:
    suffix, options = FORMS[form]
    mask = random_mask(111, 77, classes)
    path = write(tmp_path / f"mask{suffix}", mask, **options)
    np.testing.assert_array_equal(read_all(path, (77, 111), classes), mask)


@pytest.mark.parametrize("form", FORMS)
def test_0_255_masks_read_as_two_classes(tmp_path: Path, form: str) -> None:
    suffix, options = FORMS[form]
    mask = random_mask(111, 77)
    path = write(tmp_path / f"mask{suffix}", mask * np.uint8(255), **options)
    np.testing.assert_array_equal(read_all(path, (77, 111)), mask)


@pytest.mark.parametrize("form", FORMS)
def test_reading_rows_equals_reading_the_whole(tmp_path: Path, form: str) -> None:
    suffix, options = FORMS[form]
    mask = random_mask(111, 77, 5)
    truth = TruthMask(write(tmp_path / f"mask{suffix}", mask, **options), (77, 111), 5)
    for top, count in [(0, 1), (0, 111), (5, 3), (31, 2), (63, 48), (110, 1)]:
        np.testing.assert_array_equal(truth.read(top, count), mask[top : top + count])


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.data())
def test_tiff_rows_at_any_scale_equal_those_of_the_same_png(
    tmp_path_factory: pytest.TempPathFactory, m_width: int, m_height: int, scale: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("truth")
    mask = random_mask(m_height * scale, m_width * scale, 3)
    options = data.draw(
        st.sampled_from([{"tile": (16, 16)}, {"rowsperstrip": 5}, {"tile": (32, 16), "compression": "zlib"}])
    )
    tiff, png = write(folder / "m.tif", mask, **options), write(folder / "m.png", mask)
    top = data.draw(st.integers(0, m_height - 1))
    count = data.draw(st.integers(1, m_height - top))
    by_rows = TruthMask(tiff, (m_width, m_height), 3).read(top, count)
    assert by_rows.shape == (count, m_width)
    np.testing.assert_array_equal(by_rows, TruthMask(png, (m_width, m_height), 3).read(top, count))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_finer_truth_is_thinned_out(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(50, 40, 3)
    path = write(tmp_path / f"mask{suffix}", mask.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(read_all(path, (40, 50), 3), mask)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_coarser_truth_is_enlarged(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(50, 40, 3)
    path = write(tmp_path / f"mask{suffix}", mask)
    np.testing.assert_array_equal(read_all(path, (80, 100), 3), mask.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("size", [(40, 60), (80, 100), (41, 50), (50, 40)])
def test_another_shape_than_the_slides_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "mask.png", random_mask(100, 200))
    with pytest.raises(TruthError) as caught:
        TruthMask(path, size, 2)
    assert "200x100" in str(caught.value)
    assert f"{size[0]}x{size[1]}" in str(caught.value)


def test_a_scale_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", random_mask(1370, 1370))
    with pytest.raises(TruthError, match="whole"):
        TruthMask(path, (1000, 1000), 2)


@pytest.mark.parametrize("value", [2, 128, 254])
def test_a_value_that_is_no_class_is_refused(tmp_path: Path, value: int) -> None:
    mask = random_mask(20, 20) * np.uint8(255)
    mask[3, 4] = value
    path = write(tmp_path / "mask.png", mask)
    with pytest.raises(TruthError, match=f"\\b{value}\\b"):
        read_all(path, (20, 20))


def test_an_index_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    mask = random_mask(20, 20, 3)
    mask[3, 4] = 7
    path = write(tmp_path / "mask.png", mask)
    with pytest.raises(TruthError, match=r"value 7.*0 to 2"):
        read_all(path, (20, 20), 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_a_value_means_does_not_depend_on_the_rows_asked_for(tmp_path: Path, suffix: str) -> None:
    """A 0/255 mask whose rows above hold faint noise (JPEG) is background there, not class 1."""
    mask = np.zeros((64, 64), np.uint8)
    mask[32:] = 255
    mask[:8] = 1
    path = write(tmp_path / f"mask{suffix}", mask)

    def read_in(rows: int) -> np.ndarray | str:
        try:
            truth = TruthMask(path, (64, 64), 2)
            return np.concatenate([truth.read(top, rows) for top in range(0, 64, rows)])
        except TruthError:
            return "refused"

    whole, parts = read_in(64), read_in(8)
    assert type(whole) is type(parts)
    np.testing.assert_array_equal(whole, parts)


def test_lossy_jpeg_masks_are_cut_in_the_middle(shared_data: Path) -> None:
    path = min((shared_data / "dsb2018" / "masks").iterdir())
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    read = read_all(path, (picture.shape[1], picture.shape[0]))
    np.testing.assert_array_equal(read, picture > 127)
    assert 0 < read.mean() < 1


def test_real_masks_read(shared_data: Path) -> None:
    for folder, classes in [("monuseg", 2), ("nucls", 3), ("tnbc", 2)]:
        path = min((shared_data / folder / "masks").iterdir())
        expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        expected = expected[..., 0] if expected.ndim == 3 else expected
        read = read_all(path, (expected.shape[1], expected.shape[0]), classes)
        np.testing.assert_array_equal(read, expected > 127 if classes == 2 else expected)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="no such truth mask"):
        TruthMask(tmp_path / "nothing.png", (5, 5), 2)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".txt"])
def test_something_else_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(b"no picture at all")
    with pytest.raises(TruthError, match="cannot be read"):
        TruthMask(path, (5, 5), 2)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_indices_are_read_and_larger_values_refused(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(30, 20, 3)
    path = write(tmp_path / f"mask{suffix}", mask.astype(np.uint16))
    np.testing.assert_array_equal(read_all(path, (20, 30), 3), mask)
    path = write(tmp_path / f"deep{suffix}", np.full((30, 20), 300, np.uint16))
    with pytest.raises(TruthError, match="300"):
        read_all(path, (20, 30), 3)


def test_other_kinds_of_pictures_are_refused(tmp_path: Path) -> None:
    for index, (values, said) in enumerate(
        [
            (np.zeros((20, 20), np.float32), "float32"),
            (np.zeros((20, 20, 5), np.uint8), "5 channels"),
            (np.zeros((20, 20, 3), np.uint16), "uint16"),
        ]
    ):
        path = write(tmp_path / f"mask{index}.tif", values, photometric="minisblack", planarconfig="contig")
        with pytest.raises(TruthError, match=said):
            read_all(path, (20, 20))


COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff00")
RGB = np.array([[255, 255, 255], [217, 140, 179], [75, 46, 131], [0, 255, 0]], np.uint8)
COLOR_FORMS = {
    "png": (".png", {}),
    "stripped": (".tif", {"rowsperstrip": 7, "photometric": "rgb"}),
    "tiled": (".tif", {"tile": (32, 48), "photometric": "rgb", "compression": "adobe_deflate"}),
    "lzw": (".tif", {"tile": (32, 48), "photometric": "rgb", "compression": "lzw"}),
}  # fmt: skip


def write_colors(path: Path, rgb: np.ndarray, **tiff: object) -> Path:
    return write(path, rgb if path.suffix == ".tif" else np.ascontiguousarray(rgb[..., ::-1]), **tiff)


@pytest.mark.parametrize("form", COLOR_FORMS)
def test_class_colours_read_as_their_classes(tmp_path: Path, form: str) -> None:
    suffix, options = COLOR_FORMS[form]
    mask = random_mask(111, 77, 4)
    path = write_colors(tmp_path / f"mask{suffix}", RGB[mask], **options)
    with TruthMask(path, (77, 111), 4, class_colors=COLORS) as truth:
        np.testing.assert_array_equal(truth.read(0, 111), mask)
        np.testing.assert_array_equal(truth.read(40, 3), mask[40:43])


@pytest.mark.parametrize("form", COLOR_FORMS)
def test_a_colour_of_no_class_is_refused_with_its_place(tmp_path: Path, form: str) -> None:
    suffix, options = COLOR_FORMS[form]
    rgb = RGB[random_mask(60, 50, 4)]
    rgb[31, 17] = (1, 2, 3)
    path = write_colors(tmp_path / f"mask{suffix}", rgb, **options)
    said = r"the colour #010203 at model pixel \(17, 31\), expected the colours .*#d98cb3"
    with TruthMask(path, (50, 60), 4, class_colors=COLORS) as truth, pytest.raises(TruthError, match=said):
        truth.read(20, 20)


def test_alpha_is_left_out(tmp_path: Path) -> None:
    mask = random_mask(60, 50, 4)
    rgba = np.dstack([RGB[mask], np.full((60, 50), 99, np.uint8)])
    path = write(tmp_path / "mask.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(TruthMask(path, (50, 60), 4, class_colors=COLORS).read(0, 60), mask)


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_lossy_colours_are_the_nearest_class(tmp_path: Path, form: str) -> None:
    mask = np.kron(random_mask(8, 6, 4), np.ones((16, 16), np.uint8))
    if form == "jpg":
        path = tmp_path / "mask.jpg"
        assert cv2.imwrite(str(path), RGB[mask][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    else:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg"}
        path = write(tmp_path / "mask.tif", RGB[mask], **options)
    labels = TruthMask(path, (96, 128), 4, class_colors=COLORS).read(0, 128)
    inner = (slice(8, None, 16), slice(8, None, 16))  # compression smears the borders of blocks
    np.testing.assert_array_equal(labels[inner], mask[inner])
    assert (labels == mask).mean() > 0.95


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_black_and_white_saved_as_colour_stays_black_and_white(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(40, 30)
    grey = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    path = write_colors(tmp_path / f"mask{suffix}", grey)
    for colors in ((), ("#eeeeee", "#1b7f3b"), ("#ffffff", "#1b7f3b")):
        np.testing.assert_array_equal(TruthMask(path, (30, 40), 2, class_colors=colors).read(0, 40), mask)
    swapped = TruthMask(path, (30, 40), 2, class_colors=("#ffffff", "#000000")).read(0, 40)
    np.testing.assert_array_equal(swapped, 1 - mask)  # both are class colours: read by colour


def test_a_colour_mask_of_background_alone_is_background(tmp_path: Path) -> None:
    path = write_colors(tmp_path / "mask.png", np.full((40, 30, 3), 255, np.uint8))
    assert not TruthMask(path, (30, 40), 2, class_colors=("#ffffff", "#1b7f3b")).read(0, 40).any()


def test_a_palette_is_read_by_index_if_that_is_possible_and_else_by_colour(tmp_path: Path) -> None:
    from PIL import Image

    mask, order = random_mask(40, 30, 4), np.array([3, 2, 0, 1], np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = RGB[order]
    by_index = Image.fromarray(mask, "P")
    by_index.putpalette(palette.ravel().tolist())
    by_index.save(tmp_path / "index.png")
    palette[10:14] = RGB
    by_color = Image.fromarray(mask + np.uint8(10), "P")
    by_color.putpalette(palette.ravel().tolist())
    by_color.save(tmp_path / "color.png")
    for name in ("index", "color"):
        truth = TruthMask(tmp_path / f"{name}.png", (30, 40), 4, class_colors=COLORS)
        np.testing.assert_array_equal(truth.read(0, 40), mask)


def test_a_pyramids_finest_page_is_the_mask(tmp_path: Path) -> None:
    mask = random_mask(128, 96, 3)
    with tifffile.TiffWriter(tmp_path / "mask.tif") as tif:
        tif.write(mask, tile=(32, 32), subifds=1)
        tif.write(mask[::2, ::2], tile=(32, 32), subfiletype=1)
    np.testing.assert_array_equal(read_all(tmp_path / "mask.tif", (96, 128), 3), mask)
    np.testing.assert_array_equal(read_all(tmp_path / "mask.tif", (48, 64), 3), mask[1::2, 1::2])


def test_white_that_is_zero_and_single_bits(tmp_path: Path) -> None:
    mask = random_mask(40, 64)
    write(tmp_path / "white.tif", (1 - mask) * np.uint8(255), photometric="miniswhite")
    write(tmp_path / "bits.tif", mask.astype(bool), photometric="minisblack", rowsperstrip=9)
    for name in ("white", "bits"):
        np.testing.assert_array_equal(read_all(tmp_path / f"{name}.tif", (64, 40)), mask)


def test_colours_in_planes_are_refused(tmp_path: Path) -> None:
    planes = np.moveaxis(RGB[random_mask(40, 30, 4)], -1, 0)
    path = write(tmp_path / "mask.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(TruthError, match="separate planes"):
        TruthMask(path, (30, 40), 4, class_colors=COLORS)


@pytest.mark.parametrize("compression", [None, "adobe_deflate"])
def test_a_damaged_tiff_is_refused_when_its_rows_are_read(tmp_path: Path, compression: str | None) -> None:
    path = write(tmp_path / "mask.tif", random_mask(256, 256), tile=(64, 64), compression=compression)
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\x77" * length
    path.write_bytes(data)
    with pytest.raises(TruthError, match=r"mask\.tif"):
        read_all(path, (256, 256))


@pytest.mark.parametrize("width", [4096, 4001])
def test_a_tiled_truth_of_slide_size_costs_no_memory(tmp_path: Path, width: int) -> None:
    mask = np.zeros((6000, width), np.uint8)
    mask[3000:3100, 2500:] = 1
    path = write(tmp_path / "mask.tif", mask, tile=(256, 256), compression="adobe_deflate")
    tracemalloc.start()
    try:
        truth = TruthMask(path, (width, 6000), 2)
        rows = truth.read(2950, 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(rows, mask[2950:3050])
    assert peak < mask.nbytes / 3


def test_tiles_left_out_of_a_tiff_are_background(tmp_path: Path) -> None:
    tile = np.ones((64, 64), np.uint8)
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, iter([tile, None, None, tile]), shape=(128, 128), dtype=np.uint8, tile=(64, 64))
    read = read_all(path, (128, 128))
    assert read[:64, :64].all()
    assert not read[:64, 64:].any()
    assert not read[64:, :64].any()
    assert read[64:, 64:].all()
