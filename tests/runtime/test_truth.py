from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.errors import TruthError
from histoseg.scale import Scale
from histoseg.truth import TruthMask

COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff00")
RGB = np.array([[255, 255, 255], [217, 140, 179], [75, 46, 131], [0, 255, 0]], np.uint8)


def make_card(classes: int, colors: tuple[str, ...] | None = None) -> ModelCard:
    return ModelCard(
        architecture="unet",
        class_names=tuple(f"class {index}" for index in range(classes)),
        class_colors=colors or tuple(f"#ff{index:02x}00" for index in range(classes)),
        spacing_um_px=0.5,
        patch_size_pixels=(64, 64),
        input=InputSpec("image", "NHWC", "uint8", "RGB", (None, None, None, 3)),
        output=OutputSpec("p", "NHWC", "softmax", classes),
        tiling=Tiling(4, 4, 16),
        precision="fp32",
    )


def open_mask(path: Path, m_size: tuple[int, int], classes: int = 2, l0_per_m: float = 1) -> TruthMask:
    l0_size = (int(m_size[0] * l0_per_m), int(m_size[1] * l0_per_m))
    scale = Scale(0, (l0_per_m, l0_per_m), (l0_per_m, l0_per_m), m_size, (0.5, 0.5))
    return TruthMask(path, make_card(classes, COLORS if classes == 4 else None), scale, l0_size)


def read_all(path: Path, m_size: tuple[int, int], classes: int = 2) -> np.ndarray:
    with open_mask(path, m_size, classes) as truth:
        return truth.read(0, m_size[1])


def random_mask(height: int, width: int, classes: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, (height, width), dtype=np.uint8)


def write(path: Path, values: np.ndarray, **tiff: object) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, **tiff)
    else:
        assert cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("classes", [2, 5])
def test_indices_and_0_255_read_as_classes(tmp_path: Path, suffix: str, classes: int) -> None:
    mask = random_mask(111, 77, classes)
    np.testing.assert_array_equal(read_all(write(tmp_path / f"m{suffix}", mask), (77, 111), classes), mask)
    white = write(tmp_path / f"w{suffix}", (mask > 0) * np.uint8(255))
    if classes == 2:
        np.testing.assert_array_equal(read_all(white, (77, 111)), mask)
    else:
        with pytest.raises(TruthError, match=r"value 255.*class indices 0 to 4$"):
            read_all(white, (77, 111), classes)


@settings(max_examples=40)
@given(
    m_size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    factor=st.integers(1, 5),
    coarser=st.booleans(),
    form=st.sampled_from(
        [{"tile": (16, 16)}, {"rowsperstrip": 5}, {"tile": (32, 16), "compression": "zlib"}]
    ),
    in_color=st.booleans(),
    data=st.data(),
)
def test_rows_of_a_tiff_at_any_scale_equal_those_of_the_same_png(
    tmp_path_factory: pytest.TempPathFactory, m_size, factor: int, coarser: bool, form, in_color: bool, data
) -> None:
    folder, (m_width, m_height) = tmp_path_factory.mktemp("truth"), m_size
    if coarser:
        size = (-(-m_height // factor), -(-m_width // factor))
    else:
        size = (m_height * factor, m_width * factor)
    mask = random_mask(*size, 4)
    values = RGB[mask] if in_color else mask
    photometric = {"photometric": "rgb" if in_color else "minisblack"}
    tiff, png = write(folder / "m.tif", values, **form, **photometric), write(folder / "m.png", values)
    top = data.draw(st.integers(0, m_height - 1))
    count = data.draw(st.integers(1, m_height - top))
    with open_mask(tiff, m_size, 4) as by_rows, open_mask(png, m_size, 4) as whole:
        rows = by_rows.read(top, count)
        assert rows.shape == (count, m_width)
        np.testing.assert_array_equal(rows, whole.read(0, m_height)[top : top + count])


@settings(max_examples=30)
@given(
    x=st.tuples(st.integers(0, 59), st.integers(1, 60)),
    slice_px=st.integers(1, 3000),
    suffix=st.sampled_from([".png", ".tif"]),
)
def test_some_columns_equal_those_of_the_whole_truth(
    tmp_path_factory: pytest.TempPathFactory, x: tuple[int, int], slice_px: int, suffix: str
) -> None:
    (x0, x1), mask = (min(x), max(x[1], x[0] + 1)), random_mask(50, 60, 4)
    path = write(tmp_path_factory.mktemp("truth") / f"m{suffix}", RGB[mask])
    with pytest.MonkeyPatch.context() as patch, open_mask(path, (60, 50), 4) as truth:
        patch.setattr("histoseg.masks.SLICE_PX", slice_px)
        np.testing.assert_array_equal(truth.read(3, 40, x0, x1), mask[3:43, x0:x1])


@pytest.mark.parametrize("tile", [{"tile": (256, 256), "compression": "zlib"}, {}])
def test_reading_takes_no_more_than_its_footprint_says(tmp_path: Path, tile: dict) -> None:
    """In colour, over the slide's width and over a panel's."""
    mask = random_mask(600, 8000, 4)
    path = write(tmp_path / "mask.tif", RGB[mask], photometric="rgb", **tile)
    with open_mask(path, (8000, 600), 4) as truth:
        for m_x0, m_x1 in ((0, 8000), (3000, 3700)):
            tracemalloc.start()
            try:
                for top in (0, 300):
                    rows = truth.read(top, 300, m_x0, m_x1)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            np.testing.assert_array_equal(rows, mask[300:, m_x0:m_x1])
            taken = truth.footprint
            assert peak < taken.reading_bytes + (m_x1 - m_x0) * (2 * 300 + taken.column_bytes)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_strange_value_is_named_with_its_place_on_the_slide(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(40, 60)
    mask[31, 52] = 9
    path = write(tmp_path / f"mask{suffix}", mask)
    with open_mask(path, (60, 40)) as truth:
        assert truth.read(0, 40, 0, 52).shape == (40, 52)
        with pytest.raises(TruthError, match=r"the value 9 at model pixel \(52, 31\)"):
            truth.read(20, 20, 50, 60)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_truth_of_the_finest_level_for_a_coarser_model(tmp_path: Path, suffix: str) -> None:
    """0.25 um/px for a model at 0.5, on a slide that ends within a model pixel, in colour."""
    coarse = random_mask(50, 41, 4)
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1)[:99, :81]
    path = write(tmp_path / f"mask{suffix}", RGB[fine])
    scale = Scale(0, (2.0, 2.0), (2.0, 2.0), (41, 50), (0.5, 0.5))
    with TruthMask(path, make_card(4, COLORS), scale, (81, 99)) as truth:
        np.testing.assert_array_equal(truth.read(0, 50), coarse)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_coarser_truth_is_enlarged(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(50, 40, 3)
    path = write(tmp_path / f"mask{suffix}", mask)
    np.testing.assert_array_equal(read_all(path, (80, 100), 3), mask.repeat(2, axis=0).repeat(2, axis=1))


def test_a_scale_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", random_mask(1370, 1370))
    with pytest.raises(TruthError, match="1370x1370 px, expected 1000x1000 px, or a whole"):
        open_mask(path, (1000, 1000))


@pytest.mark.parametrize("value", [2, 128, 254])
def test_a_value_that_is_no_class_is_refused_with_its_place(tmp_path: Path, value: int) -> None:
    mask = random_mask(20, 20) * np.uint8(255)
    mask[3, 4] = value
    path = write(tmp_path / "mask.png", mask)
    with (
        open_mask(path, (20, 20)) as truth,
        pytest.raises(
            TruthError, match=rf"the value {value} at model pixel \(4, 3\), expected class indices"
        ),
    ):
        truth.read(2, 5)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_colour_of_no_class_is_refused_with_its_place(tmp_path: Path, suffix: str) -> None:
    rgb = RGB[random_mask(60, 50, 4)]
    rgb[31, 17] = (1, 2, 3)
    path = write(tmp_path / f"mask{suffix}", rgb)
    said = r"the colour #010203 at model pixel \(17, 31\), expected the colours .*#d98cb3 \(class 1\)"
    with open_mask(path, (50, 60), 4) as truth, pytest.raises(TruthError, match=said):
        truth.read(20, 20)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_a_value_means_does_not_depend_on_the_rows_asked_for(tmp_path: Path, suffix: str) -> None:
    """A 0/255 mask whose rows above hold faint noise (JPEG) is background there, not class 1."""
    mask = np.zeros((64, 64), np.uint8)
    mask[32:] = 255
    mask[:8] = 1
    path = write(tmp_path / f"mask{suffix}", mask)
    with open_mask(path, (64, 64)) as truth:
        parts = np.concatenate([truth.read(top, 8) for top in range(0, 64, 8)])
        np.testing.assert_array_equal(parts, truth.read(0, 64))
    assert parts[:8].any() == (suffix == ".png")


def test_real_masks_read(shared_data: Path) -> None:
    for folder, classes in [("monuseg", 2), ("nucls", 3), ("tnbc", 2), ("dsb2018", 2)]:
        for path in sorted((shared_data / folder / "masks").iterdir())[:12]:
            expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            expected = expected[..., 0] if expected.ndim == 3 else expected
            read = read_all(path, (expected.shape[1], expected.shape[0]), classes)
            np.testing.assert_array_equal(read, expected > 127 if classes == 2 else expected)


@pytest.mark.parametrize("compression", [None, "adobe_deflate", "lzw", "zstd"])
def test_a_damaged_tiff_is_refused_when_its_rows_are_read(tmp_path: Path, compression: str | None) -> None:
    path = write(tmp_path / "mask.tif", random_mask(256, 256), tile=(64, 64), compression=compression)
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\x77" * length
    path.write_bytes(data)
    with open_mask(path, (256, 256)) as truth:
        assert truth.read(0, 128).shape == (128, 256)
        with pytest.raises(TruthError, match=r"mask\.tif"):
            truth.read(128, 128)


def test_a_tiff_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.tif", random_mask(300, 200))
    path.write_bytes(path.read_bytes()[:-150])
    with open_mask(path, (200, 300)) as truth, pytest.raises(TruthError, match=r"damaged.*write it again"):
        truth.read(280, 20)
