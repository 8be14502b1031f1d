from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from histoseg.demo import write_pyramid
from histoseg.errors import SlideError, SpacingError
from histoseg.slide import ScaledSlide, open_slide, plan_scale

MODEL_UM_PX = 0.5
TOLERANCE = 0.05


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def see(slide: object, *, force: bool = False, spacing: float = MODEL_UM_PX) -> ScaledSlide:
    return ScaledSlide(slide, plan_scale(slide, spacing, tolerance=TOLERANCE, force=force))


def test_a_real_slide_gives_openslides_own_pixels(real_svs: Path) -> None:
    with open_slide(real_svs) as slide, openslide.OpenSlide(str(real_svs)) as reference:
        assert slide.level_sizes == ((2220, 2967),)
        assert slide.spacing_um_px == pytest.approx((0.499, 0.499))
        scaled = see(slide)
        assert scaled.m_size == (2220, 2967)
        for x, y, w, h in [(0, 0, 300, 200), (777, 1234, 256, 256), (2000, 2900, 220, 67)]:
            expected = np.asarray(reference.read_region((x, y), 0, (w, h)).convert("RGB"))
            np.testing.assert_array_equal(scaled.read(x, y, w, h), expected)


def test_a_real_slide_reads_the_same_from_many_threads(real_svs: Path) -> None:
    with open_slide(real_svs) as slide, ThreadPoolExecutor(8) as pool:
        scaled = ScaledSlide(slide, plan_scale(slide, 1.2, tolerance=TOLERANCE))
        whole = scaled.read(0, 0, *scaled.m_size)
        places = [(x, y) for x in range(0, 840, 97) for y in range(0, 1100, 131)]
        for (x, y), tile in zip(places, pool.map(lambda p: scaled.read(*p, 64, 64), places), strict=True):
            np.testing.assert_array_equal(tile, whole[y : y + 64, x : x + 64])


def over_white(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what a slide reads as, and OpenSlide's RGBA of it laid over white by hand."""
    with open_slide(path) as slide, openslide.OpenSlide(str(path)) as reference:
        assert "openslide.background-color" not in reference.properties  # then it is white
        rgba = np.asarray(reference.read_region((0, 0), 0, reference.dimensions), float)
        share = rgba[..., 3:] / 255
        return slide.read_level(0, 0, 0, *slide.level_sizes[0]), rgba[..., :3] * share + 255 * (1 - share)


def test_tiles_that_the_file_leaves_out_show_the_background_colour(tmp_path: Path) -> None:
    tile = np.full((256, 256, 3), (200, 100, 150), np.uint8)
    tifffile.imwrite(
        tmp_path / "sparse.tif", iter([tile, None, None, tile]), shape=(512, 512, 3), dtype=np.uint8,
        tile=(256, 256), photometric="rgb", metadata=None,
    )  # fmt: skip
    read, expected = over_white(tmp_path / "sparse.tif")
    np.testing.assert_array_equal(read, expected)
    assert (read[0, 300] == 255).all()
    assert (read[300, 300] == (200, 100, 150)).all()


def test_half_transparent_pixels_mix_with_the_background_colour(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (256, 256, 4), dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "alpha.tif",
        rgba,
        tile=(256, 256),
        photometric="rgb",
        extrasamples=["unassalpha"],
        metadata=None,
    )
    read, expected = over_white(tmp_path / "alpha.tif")
    assert np.abs(read - expected).max() <= 0.5 + 1e-3


def test_the_real_boxes_give_openslides_own_pixels_at_every_level(shared_data: Path) -> None:
    path = shared_data / "slides" / "boxes.tiff"
    with open_slide(path) as slide, openslide.OpenSlide(str(path)) as reference:
        assert slide.level_sizes == reference.level_dimensions
        for level, size in enumerate(slide.level_sizes):
            expected = np.asarray(reference.read_region((0, 0), level, size))
            np.testing.assert_array_equal(slide.read_level(level, 0, 0, *size), expected[..., :3])


def test_transparency_shows_the_background_colour_that_the_file_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = openslide.OpenSlide.properties.fget
    monkeypatch.setattr(
        openslide.OpenSlide,
        "properties",
        property(lambda slide: {**stated(slide), "openslide.background-color": "102030"}),
    )
    tifffile.imwrite(
        tmp_path / "sparse.tif", iter([noise(256, 256), None]), shape=(256, 512, 3), dtype=np.uint8,
        tile=(256, 256), photometric="rgb", metadata=None,
    )  # fmt: skip
    with open_slide(tmp_path / "sparse.tif") as slide:
        read = slide.read_level(0, 0, 0, 512, 256)
    np.testing.assert_array_equal(read[:, :256], noise(256, 256))
    assert (read[:, 256:] == (0x10, 0x20, 0x30)).all()


def write_resolution(path: Path, resolution: tuple[float, float], unit: str, description: str = "") -> Path:
    tifffile.imwrite(
        path, noise(64, 96), tile=(64, 64), photometric="rgb", resolution=resolution, resolutionunit=unit,
        metadata=None, description=description,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("resolution", "unit"),
    [(72, "INCH"), (96, "INCH"), (300, "INCH"), (1, "INCH"), (1, "CENTIMETER"), (28.3465, "CENTIMETER")],
)
def test_a_printers_resolution_is_no_um_px(tmp_path: Path, resolution: float, unit: str) -> None:
    with open_slide(write_resolution(tmp_path / "a.tif", (resolution, resolution), unit)) as slide:
        assert slide.spacing_um_px is None
        with pytest.raises(SpacingError, match="--mpp"):
            plan_scale(slide, MODEL_UM_PX, tolerance=TOLERANCE)
        assert plan_scale(slide, MODEL_UM_PX, tolerance=TOLERANCE, mpp=0.5).m_size == (96, 64)


@pytest.mark.parametrize("um_px", [0.25, 1.0, 20.0, 79.0])
def test_a_microscopes_resolution_counts_however_coarse(tmp_path: Path, um_px: float) -> None:
    per_cm = 1e4 / um_px
    with open_slide(write_resolution(tmp_path / "a.tif", (per_cm, per_cm), "CENTIMETER")) as slide:
        assert slide.spacing_um_px == pytest.approx((um_px, um_px), rel=1e-4)


def test_what_a_scanner_states_is_never_taken_for_a_printers(tmp_path: Path) -> None:
    description = "Aperio Image Library v1\r\n96x64 |AppMag = 1|MPP = 352.78"
    with open_slide(write_resolution(tmp_path / "a.svs", (72, 72), "INCH", description)) as slide:
        assert slide.spacing_um_px == pytest.approx((352.78, 352.78))


def test_um_px_of_x_and_y_may_differ(tmp_path: Path) -> None:
    with open_slide(write_resolution(tmp_path / "a.tif", (40_000, 20_000), "CENTIMETER")) as slide:
        assert slide.spacing_um_px == pytest.approx((0.25, 0.5))
        scaled = see(slide)
        assert scaled.m_size == (48, 64)
        assert scaled.scale.l0_spacing_um_px == pytest.approx((0.25, 0.5))
        expected = noise(64, 96).reshape(64, 48, 2, 3).mean(axis=2)
        assert np.abs(scaled.read(0, 0, 48, 64) - expected).max() <= 0.5


SCN = """<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection name="c" sizeX="500000" sizeY="375000"><image name="i"><creationDate>2020-01-01</creationDate>
<device model="x"/><pixels sizeX="{w}" sizeY="{h}">
<dimension sizeX="{w}" sizeY="{h}" r="0" ifd="0"/>
<dimension sizeX="{w2}" sizeY="{h2}" r="1" ifd="1"/></pixels>
<view sizeX="{vw}" sizeY="{vh}" offsetX="{ox}" offsetY="{oy}"/><scanSettings>
<objectiveSettings><objective>40</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.65</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image></collection></scn>"""


def write_scn(path: Path, rgb: np.ndarray, offset: tuple[int, int]) -> Path:
    """Write a Leica slide: 2000 x 1500 px at 0.25 um/px, of which only `rgb`, at `offset`, was scanned."""
    height, width = rgb.shape[:2]
    xml = SCN.format(
        w=width, h=height, w2=width // 2, h2=height // 2, vw=width * 250, vh=height * 250,
        ox=offset[0] * 250, oy=offset[1] * 250,
    )  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for level, pixels in enumerate((rgb, rgb[::2, ::2])):
            tif.write(
                pixels, tile=(128, 128), photometric="rgb", metadata=None, description=None if level else xml,
                resolution=(40_000 / 2**level, 40_000 / 2**level), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def test_a_slide_with_bounds_begins_where_they_begin(tmp_path: Path) -> None:
    rgb = noise(390, 520)
    with open_slide(write_scn(tmp_path / "bounded.scn", rgb, (300, 200))) as slide:
        assert slide.level_sizes == ((520, 390), (260, 195))
        assert slide.spacing_um_px == pytest.approx((0.25, 0.25))
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 520, 390), rgb)
        np.testing.assert_array_equal(slide.read_level(0, 17, 33, 40, 50), rgb[33:83, 17:57])
        np.testing.assert_array_equal(slide.read_level(1, 0, 0, 260, 195), rgb[::2, ::2])
        scaled = see(slide)
        assert scaled.m_size == (260, 195)
        np.testing.assert_array_equal(scaled.read(11, 7, 30, 20), rgb[::2, ::2][7:27, 11:41])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("small_la.tiff", (2, 1)),
        ("small.svs", (16, 16)),
        ("sm_image.dcm", (50, 50)),
        ("camelyon-jpeg.dcm", (1152, 700)),
    ],
)
def test_real_files_open_with_their_size(shared_data: Path, name: str, size: tuple[int, int]) -> None:
    with open_slide(shared_data / "slides" / name) as slide:
        assert slide.level_sizes[0] == size
        scale = plan_scale(slide, 0.5, tolerance=TOLERANCE, mpp=0.5)
        assert ScaledSlide(slide, scale).read(-3, -3, 8, 8).shape == (8, 8, 3)


def test_a_real_dicom_slide_gives_openslides_own_pixels(shared_data: Path) -> None:
    path = shared_data / "slides" / "camelyon-jpeg.dcm"
    with open_slide(path) as slide, openslide.OpenSlide(str(path)) as reference:
        assert slide.spacing_um_px == pytest.approx((28.969, 28.968))
        for x, y, w, h in [(0, 0, 1152, 700), (300, 200, 111, 222)]:
            expected = np.asarray(reference.read_region((x, y), 0, (w, h)).convert("RGB"))
            np.testing.assert_array_equal(slide.read_level(0, x, y, w, h), expected)
        with pytest.raises(SpacingError, match=r"28\.97 um/px"):
            plan_scale(slide, MODEL_UM_PX, tolerance=TOLERANCE)
        assert plan_scale(slide, 29, tolerance=TOLERANCE).level_per_m == (1.0, 1.0)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "nothing.svs")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="folder"):
        open_slide(tmp_path)


def test_a_damaged_file_says_so_at_every_read(tmp_path: Path) -> None:
    """OpenSlide answers every call with the first error once one read has failed."""
    path = tmp_path / "torn.tif"
    write_pyramid(path, noise(600, 600), 0.5)
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    with open_slide(path) as slide:
        slide.read_level(0, 0, 0, 64, 64)  # what is whole can be read until then
        for x, y in [(560, 560), (0, 0), (560, 560)]:
            with pytest.raises(SlideError, match=r"torn\.tif.*damaged"):
                slide.read_level(0, x, y, 16, 16)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lfs-pointer.ndpi", "git lfs pull"),
        ("untiled.tif", "tiled"),
        ("unopenable.tiff", "TIFF"),
        ("random-bytes.svs", "no slide"),
        ("jpegls.dcm", ""),
    ],
)
def test_bad_files_are_refused_with_the_reason(shared_data: Path, name: str, said: str) -> None:
    with pytest.raises(SlideError) as caught, open_slide(shared_data / "bad_slides" / name) as slide:
        slide.read_level(0, 0, 0, 1, 1)
    assert name in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
