from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from histoseg.errors import SlideError
from histoseg.overview import read_overview
from histoseg.slide import open_slide

ADOBE_TO_XYZ = np.array(
    [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
)
XYZ_TO_SRGB = np.array(
    [[3.24045, -1.53714, -0.49853], [-0.96927, 1.87601, 0.04156], [0.05564, -0.20403, 1.05723]]
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def adobe_to_srgb(rgb: np.ndarray) -> np.ndarray:
    """Convert by the two standards' own formulas (both have the white point D65), in float64."""
    light = (rgb / 255) ** (563 / 256) @ ADOBE_TO_XYZ.T @ XYZ_TO_SRGB.T
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def write(path: Path, rgb: np.ndarray, profile: bytes | None, **options: object) -> Path:
    tifffile.imwrite(
        path, rgb, tile=(64, 64), photometric="rgb", iccprofile=profile, metadata=None, **options
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def adobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("icc") / "adobe.tif"
    return write(path, noise(200, 300), imagecodecs.cms_profile("adobergb"))


def test_a_slide_is_read_as_stored_unless_asked_otherwise(adobe: Path) -> None:
    with open_slide(adobe) as slide:
        assert slide.color_space == "device"
        assert slide.color_profile == "Adobe RGB (compatible)"
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 200), noise(200, 300))


def test_srgb_is_what_the_standards_say(adobe: Path) -> None:
    with open_slide(adobe, color_space="sRGB") as slide:
        assert slide.color_space == "sRGB"
        read = slide.read_level(0, 0, 0, 300, 200)
    expected = adobe_to_srgb(noise(200, 300))
    assert np.abs(read - expected).max() <= 1.5
    assert np.abs(read.astype(int) - noise(200, 300)).max() > 20
    assert read.flags.writeable


def test_tiles_decoded_from_the_file_are_converted_too(tmp_path: Path) -> None:
    profile = imagecodecs.cms_profile("adobergb")
    path = write(
        tmp_path / "a.tif", noise(64, 64), profile, compression="jpeg", compressionargs={"level": 95}
    )
    with open_slide(path) as device, open_slide(path, color_space="sRGB") as srgb:
        assert device._tiles[0] is not None
        expected = adobe_to_srgb(device.read_level(0, 0, 0, 64, 64))
        assert np.abs(srgb.read_level(0, 0, 0, 64, 64) - expected).max() <= 1.5


def test_the_overview_is_converted_too(adobe: Path) -> None:
    with open_slide(adobe, color_space="sRGB") as slide:
        np.testing.assert_array_equal(read_overview(slide, 300), slide.read_level(0, 0, 0, 300, 200))


def test_threads_that_share_a_slide_get_the_same_colours(adobe: Path) -> None:
    with open_slide(adobe, color_space="sRGB") as slide, ThreadPoolExecutor(8) as pool:
        whole = slide.read_level(0, 0, 0, 300, 200)
        places = [(x, y) for x in range(0, 200, 20) for y in range(0, 100, 10)] * 3
        for (x, y), region in zip(
            places, pool.map(lambda p: slide.read_level(0, *p, 100, 100), places), strict=True
        ):
            np.testing.assert_array_equal(region, whole[y : y + 100, x : x + 100])


def test_a_slide_without_a_profile_is_srgb_already(tmp_path: Path) -> None:
    with open_slide(write(tmp_path / "a.tif", noise(64, 64), None), color_space="sRGB") as slide:
        assert slide.color_profile is None
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 64, 64), noise(64, 64))


@pytest.mark.parametrize(
    ("profile", "name"),
    [(b"no profile at all", "unreadable"), (imagecodecs.cms_profile("gray"), "gray built-in")],
)
def test_a_profile_that_cannot_be_used_matters_only_when_it_is_asked_for(
    tmp_path: Path, profile: bytes, name: str
) -> None:
    path = write(tmp_path / "a.tif", noise(64, 64), profile)
    with open_slide(path) as slide:
        assert slide.color_profile == name
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 64, 64), noise(64, 64))
    with pytest.raises(SlideError) as caught:
        open_slide(path, color_space="sRGB")
    for word in (str(path), name, "RGB pixels", "color_space"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("sm_image.dcm", "sRGB IEC61966-2.1"),
        ("boxes.tiff", "sRGB built-in"),
        ("cmu-1-small-region.svs", None),
        ("camelyon-jpeg.dcm", None),
    ],
)
def test_real_profiles_of_srgb_change_nothing_that_is_seen(
    shared_data: Path, name: str, profile: str | None
) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as device, open_slide(path, color_space="sRGB") as srgb:
        assert device.color_profile == srgb.color_profile == profile
        size = device.level_sizes[0]
        difference = np.abs(device.read_level(0, 0, 0, *size).astype(int) - srgb.read_level(0, 0, 0, *size))
        assert difference.max() <= 1


def test_the_background_is_no_device_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that were never scanned keep the colour that the file states."""
    stated = openslide.OpenSlide.properties.fget
    monkeypatch.setattr(
        openslide.OpenSlide,
        "properties",
        property(lambda slide: {**stated(slide), "openslide.background-color": "405060"}),
    )
    rgba = np.dstack([noise(64, 192), np.repeat(np.array([0, 128, 255], np.uint8), 64)[None].repeat(64, 0)])
    tifffile.imwrite(
        tmp_path / "alpha.tif", rgba, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"],
        metadata=None, iccprofile=imagecodecs.cms_profile("adobergb"),
    )  # fmt: skip
    with open_slide(tmp_path / "alpha.tif", color_space="sRGB") as slide:
        read = slide.read_level(0, 0, 0, 192, 64).astype(float)
    background, scanned = np.array([0x40, 0x50, 0x60]), adobe_to_srgb(noise(64, 192))
    assert (read[:, :64] == background).all()
    assert np.abs(read[:, 128:] - scanned[:, 128:]).max() <= 1.5
    half = background + (scanned[:, 64:128] - background) * 128 / 255
    assert np.abs(read[:, 64:128] - half).mean() <= 1  # OpenSlide keeps half the levels of half a colour
