from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import histoseg.masks
import histoseg.tiffmask
from histoseg.errors import TruthError
from histoseg.maskrows import MaskRows, read_safely
from histoseg.masks import find_factor, fit_mask, open_mask
from histoseg.scale import Scale

COLORS = np.array([[255, 255, 255], [217, 140, 179], [75, 46, 131], [0, 255, 0]], np.uint8)
PALETTE = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
TILED = {"tile": (32, 48)}


def random_mask(height: int, width: int, classes: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def write(path: Path, values: np.ndarray, **tiff: object) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, **tiff)
    else:
        Image.fromarray(values).save(path)
    return path


def read_all(rows: MaskRows) -> np.ndarray:
    width, height = rows.size
    return rows.read(np.arange(height), np.arange(width))


def read_file(path: Path) -> np.ndarray:
    return read_all(open_mask(path))


def scale_of(m_size: tuple[int, int], l0_per_m: float = 1.0) -> Scale:
    return Scale(0, (l0_per_m, l0_per_m), (l0_per_m, l0_per_m), m_size, (0.5, 0.5))


GREY_FORMS = {
    "png": (".png", {}),
    "stripped": (".tif", {"rowsperstrip": 7}),
    "one-strip": (".tif", {}),
    "one-deflated-strip": (".tif", {"compression": "zlib", "rowsperstrip": 111}),
    "big-endian": (".tif", {"byteorder": ">"}),
    "bigtiff": (".tif", {"bigtiff": True, **TILED}),
    "tiled": (".tif", TILED),
    "tiled-deflate": (".tif", {**TILED, "compression": "adobe_deflate"}),
    "tiled-lzw": (".tif", {**TILED, "compression": "lzw"}),
    "tiled-zstd": (".tif", {**TILED, "compression": "zstd"}),
    "tiled-packbits": (".tif", {**TILED, "compression": "packbits"}),
    "stripped-deflate-predicted": (".tif", {"rowsperstrip": 16, "compression": "zlib", "predictor": True}),
    "palette": (".tif", {**TILED, "photometric": "palette", "colormap": PALETTE}),
}  # fmt: skip
COLOR_FORMS = {
    "png": (".png", {}),
    "stripped": (".tif", {"rowsperstrip": 7, "photometric": "rgb"}),
    "one-strip": (".tif", {"photometric": "rgb"}),
    **{
        f"tiled-{codec}": (".tif", {**TILED, "photometric": "rgb", "compression": codec})
        for codec in ("adobe_deflate", "lzw", "zstd")
    },
    "tiled-predicted": (".tif", {**TILED, "photometric": "rgb", "compression": "zlib", "predictor": True}),
}  # fmt: skip


KINDS = [(form, dtype) for form in GREY_FORMS for dtype in (np.uint8, np.uint16, np.int32)]
NO_SUCH_FILES = [("png", np.int32), ("palette", np.uint16), ("palette", np.int32)]


@pytest.mark.parametrize(("form", "dtype"), [kind for kind in KINDS if kind not in NO_SUCH_FILES])
def test_whole_numbers_read_as_they_are(tmp_path: Path, form: str, dtype: type) -> None:
    suffix, options = GREY_FORMS[form]
    mask = random_mask(111, 77, 200).astype(dtype)
    rows = open_mask(write(tmp_path / f"mask{suffix}", mask, **options))
    assert (rows.size, rows.channels, rows.lossy) == ((77, 111), 1, False)
    np.testing.assert_array_equal(read_all(rows), mask)


@pytest.mark.parametrize("form", COLOR_FORMS)
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_read_as_they_are_without_alpha(tmp_path: Path, form: str, alpha: bool) -> None:
    suffix, options = COLOR_FORMS[form]
    rgb = COLORS[random_mask(111, 77, 4)]
    values = np.dstack([rgb, random_mask(111, 77, 256)]) if alpha else rgb
    extra = {"extrasamples": ["unassalpha"]} if alpha and suffix == ".tif" else {}
    rows = open_mask(write(tmp_path / f"mask{suffix}", values, **options, **extra))
    assert (rows.size, rows.channels, rows.lossy) == ((77, 111), 3, False)
    np.testing.assert_array_equal(read_all(rows), rgb)


@settings(max_examples=80)
@given(
    form=st.sampled_from([*GREY_FORMS, *(f"colour {name}" for name in COLOR_FORMS)]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    data=st.data(),
)
def test_any_lines_and_columns_equal_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, form: str, size: tuple[int, int], data: st.DataObject
) -> None:
    width, height = size
    suffix, options = (GREY_FORMS | {f"colour {name}": form for name, form in COLOR_FORMS.items()})[form]
    mask = random_mask(height, width, 4)
    values = COLORS[mask] if form.startswith("colour") else mask
    rows = open_mask(write(tmp_path_factory.mktemp("mask") / f"m{suffix}", values, **options))
    indices = (
        st.lists(st.integers(0, length - 1), min_size=1).map(lambda v: np.sort(np.array(v, np.intp)))
        for length in (width, height)
    )
    columns, lines = (data.draw(strategy) for strategy in indices)
    for part in (lines, lines[len(lines) // 2 :], lines[:1]):  # back and forth
        np.testing.assert_array_equal(rows.read(part, columns), values[part][:, columns])
    rows.close()


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_are_turned_into_rgb(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    rgb = COLORS[np.kron(random_mask(8, 6, 4), np.ones((32, 32), np.uint8))]
    options = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb", "subsampling": subsampling}
    rows = open_mask(write(tmp_path / "mask.tif", rgb, **options))
    with tifffile.TiffFile(tmp_path / "mask.tif") as tif:
        assert tif.pages[0].photometric.name == "YCBCR"
    assert rows.lossy
    inner = (slice(16, None, 32), slice(16, None, 32))  # compression smears the borders of blocks
    difference = read_all(rows)[inner].astype(int) - rgb[inner]
    assert np.abs(difference).max() < 16


def test_white_that_is_zero_of_one_bit_and_of_four(tmp_path: Path) -> None:
    mask = random_mask(40, 64)
    write(tmp_path / "white.tif", (1 - mask) * np.uint8(255), photometric="miniswhite")
    write(tmp_path / "bits.tif", mask.astype(bool), photometric="minisblack", rowsperstrip=9)
    write(tmp_path / "white-bits.tif", ~mask.astype(bool), photometric="miniswhite", tile=(32, 32))
    write(tmp_path / "deep-white.tif", 65535 - mask.astype(np.uint16), photometric="miniswhite")
    for name, value in [("white", 255), ("bits", 1), ("white-bits", 1), ("deep-white", 1)]:
        np.testing.assert_array_equal(read_file(tmp_path / f"{name}.tif"), mask * value)
    nibbles = random_mask(40, 64, 16)
    write(tmp_path / "four.tif", nibbles, bitspersample=4, photometric="minisblack")
    np.testing.assert_array_equal(read_file(tmp_path / "four.tif"), nibbles)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P"])
def test_pictures_of_every_grey_kind(tmp_path: Path, mode: str) -> None:
    mask = random_mask(30, 20)
    values = mask * np.uint8(255)
    picture = {
        "1": lambda: Image.fromarray(values).convert("1"),
        "L": lambda: Image.fromarray(values),
        "LA": lambda: Image.fromarray(np.dstack([values, random_mask(30, 20, 256)]), "LA"),
        "I;16": lambda: Image.fromarray(values.astype(np.uint16)),
        "P": lambda: Image.fromarray(values).convert("P"),
    }[mode]()
    picture.save(tmp_path / "mask.png")
    expected = mask if mode == "1" else values
    np.testing.assert_array_equal(read_file(tmp_path / "mask.png"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("white_first", [False, True])
def test_a_palette_of_black_and_white_is_what_a_person_sees(
    tmp_path: Path, suffix: str, white_first: bool
) -> None:
    mask = random_mask(40, 30)
    colors = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)[:: -1 if white_first else 1]
    path = tmp_path / f"mask{suffix}"
    indices = 1 - mask if white_first else mask
    if suffix == ".png":
        picture = Image.fromarray(indices, "P")
        picture.putpalette(colors.ravel().tolist())
        picture.save(path)
    else:
        colormap = np.zeros((3, 256), np.uint16)
        colormap[:, :2] = colors.T.astype(np.uint16) * 257
        write(path, indices, photometric="palette", colormap=colormap)
    rows = open_mask(path)
    assert rows.palette is None
    np.testing.assert_array_equal(read_all(rows), mask * np.uint8(255))


@pytest.mark.parametrize("kind", ["subifds", "pages", "ome"])
@pytest.mark.parametrize("codec", ["zlib", "lzw", "zstd"])
def test_a_pyramids_finest_page_is_the_mask(tmp_path: Path, kind: str, codec: str) -> None:
    rgb, path = COLORS[random_mask(128, 96, 4)], tmp_path / ("mask.ome.tif" if kind == "ome" else "mask.tif")
    options = {"tile": (32, 32), "photometric": "rgb", "compression": codec}
    with tifffile.TiffWriter(path, ome=kind == "ome") as tif:
        tif.write(rgb, subifds=None if kind == "pages" else 1, **options)
        tif.write(rgb[::2, ::2], subfiletype=1, **options)
    np.testing.assert_array_equal(read_file(path), rgb)


def test_tiles_left_out_of_a_tiff_hold_zeros(tmp_path: Path) -> None:
    tile = np.ones((64, 64), np.uint8)
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, iter([tile, None, None, tile]), shape=(128, 128), dtype=np.uint8, tile=(64, 64))
    np.testing.assert_array_equal(read_file(path), np.kron(np.eye(2, dtype=np.uint8), tile))


def test_other_kinds_of_pictures_are_refused(tmp_path: Path) -> None:
    separate = {"photometric": "rgb", "planarconfig": "separate"}
    kinds = [
        (np.zeros((20, 20), np.float32), {}, "is float32, expected uint8 class indices"),
        (np.zeros((20, 20, 5), np.uint8), {"planarconfig": "contig"}, "has 5 channels, expected 1"),
        (np.zeros((20, 20, 3), np.uint16), {"photometric": "rgb"}, "is uint16"),
        (np.zeros((3, 20, 20), np.uint8), separate, "separate planes, expected them side by side"),
        (np.zeros((20, 20, 4), np.uint8), {"photometric": "separated"}, "colours as SEPARATED, expected RGB"),
        (np.zeros((20, 20, 3), np.uint8), {"photometric": "cielab"}, "colours as CIELAB, expected RGB"),
        (random_mask(3 * 20, 20, 5).reshape(3, 20, 20), {}, "has 3 pages of 20x20 px, expected one"),
    ]
    for index, (values, options, said) in enumerate(kinds):
        defaults = {"photometric": "minisblack", "compression": "zlib"}
        path = write(tmp_path / f"mask{index}.tif", values, **(defaults | options))
        with pytest.raises(TruthError, match=said) as caught:
            open_mask(path)
        assert str(path) in str(caught.value)
    Image.new("CMYK", (20, 20)).save(tmp_path / "mask.jpg")
    with pytest.raises(TruthError, match="mode CMYK, expected class indices"):
        open_mask(tmp_path / "mask.jpg")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="no such truth mask"):
        open_mask(tmp_path / "nothing.png")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".txt"])
def test_something_else_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(b"no picture at all")
    with pytest.raises(TruthError, match="cannot be read"):
        open_mask(path)


@settings(max_examples=150)
@given(st.sampled_from(["m.png", "m.tif", "z.tif"]), st.integers(0, 3000), st.binary(min_size=1, max_size=8))
def test_a_damaged_mask_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / name
    options = {"tile": (32, 32), "compression": "zlib"} if name == "z.tif" else {}
    write(path, random_mask(60, 50, 4), **({} if name == "m.png" else options))
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    said = ""
    try:
        rows = open_mask(path)
        assert read_safely(path, "truth", lambda: read_all(rows)).ndim in (2, 3)
    except TruthError as error:
        said = str(error)
    assert "\n" not in said


def test_a_picture_too_large_to_load_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histoseg.masks, "MAX_DECODED_BYTES", 3000)
    monkeypatch.setattr(histoseg.tiffmask, "MAX_DECODED_BYTES", 3000)
    monkeypatch.setattr(histoseg.tiffmask, "PLAIN_ROWS", 8)
    mask = random_mask(50, 60)
    assert read_file(write(tmp_path / "small.png", mask)).sum() == mask.sum()
    for name, values, options in [
        ("mask.png", COLORS[mask], {}),
        ("mask.tif", COLORS[mask], {"compression": "zlib", "photometric": "rgb"}),
    ]:
        with pytest.raises(TruthError, match=r"60x50 px.*write it as a tiled TIFF"):
            open_mask(write(tmp_path / name, values, **options))
    assert read_file(write(tmp_path / "plain.tif", COLORS[mask], photometric="rgb")).shape == (50, 60, 3)


@pytest.mark.parametrize("options", [{"tile": (256, 256), "compression": "zlib"}, {}])
@pytest.mark.parametrize("width", [4096, 4001])
def test_a_tiff_of_slide_size_costs_no_memory(tmp_path: Path, width: int, options: dict) -> None:
    mask = np.zeros((6000, width), np.uint8)
    mask[3000:3100, 2500:] = 1
    path = write(tmp_path / "mask.tif", mask, **options)
    tracemalloc.start()
    try:
        rows = open_mask(path)
        values = rows.read(np.arange(2950, 3050), np.arange(width))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(values, mask[2950:3050])
    assert peak < mask.nbytes / 4


def test_rows_in_turn_decode_no_tile_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask(256, 192, 3)
    rows = open_mask(write(tmp_path / "m.tif", mask, tile=(64, 64), compression="zlib"))
    decoded: list[int] = []
    decode = rows._decode
    monkeypatch.setattr(rows, "_decode", lambda index, count: decoded.append(index) or decode(index, count))
    columns = np.arange(192)
    parts = [rows.read(np.arange(top, min(256, top + 24)), columns) for top in range(0, 256, 24)]
    np.testing.assert_array_equal(np.concatenate(parts), mask)
    assert decoded == list(range(12))


@given(
    l0_size=st.tuples(st.integers(40, 400), st.integers(40, 400)),
    factor=st.integers(1, 8),
    mask_factor=st.sampled_from([1, 2, 3, 4, 0.5]),
    floor=st.booleans(),
)
def test_a_model_pixel_takes_the_mask_pixel_at_its_centre(
    l0_size: tuple[int, int], factor: int, mask_factor: float, floor: bool
) -> None:
    """Also where the slide ends within a model pixel, and however the mask's size was rounded."""
    m_size = tuple(-(-side // factor) for side in l0_size)
    size = tuple(int(side // mask_factor if floor else -(-side // mask_factor)) for side in l0_size)
    if find_factor(size, l0_size) is None or find_factor(size, m_size) not in (None, factor / mask_factor):
        assume(False)  # a picture this small could be two things
    fit = fit_mask(Path("m.png"), size, scale_of(m_size, factor), l0_size)
    for found, count, have in zip((fit.columns, fit.lines), m_size, size, strict=True):
        centers = (np.arange(count) + 0.5) * factor  # in level-0 pixels
        expected = np.minimum(np.floor(centers / mask_factor), have - 1)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(40, 60), (80, 100), (41, 50), (50, 40), (137, 69)])
def test_another_shape_than_the_slides_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(TruthError) as caught:
        fit_mask(Path("m.png"), size, scale_of((200, 100), 2), (400, 200))
    for said in ("m.png", f"{size[0]}x{size[1]}", "200x100 or 400x200", "whole multiple"):
        assert said in str(caught.value)
