from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import histoseg.meaning
from histoseg.errors import TruthError
from histoseg.masks import open_mask
from histoseg.meaning import NO_CLASS, choose_meaning

NAMES = ("glass", "stroma", "tumour", "necrosis")
COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00FF00")
RGB = np.array([[255, 255, 255], [217, 140, 179], [75, 46, 131], [0, 255, 0]], np.uint8)
TWO = ("#eeeeee", "#1b7f3b")


def random_mask(height: int, width: int, classes: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, (height, width), dtype=np.uint8)


def draw_blocks(classes: int) -> np.ndarray:
    """A mask whose borders lie far apart, as compression that loses something needs it."""
    return np.kron(random_mask(8, 6, classes), np.ones((16, 16), np.uint8))


def write(path: Path, values: np.ndarray, quality: int = 95) -> Path:
    if path.suffix == ".tif":
        colors = {"photometric": "rgb", "tile": (32, 32)} if values.ndim == 3 else {}
        tifffile.imwrite(path, values, **colors)
    else:
        Image.fromarray(values).save(path, **({"quality": quality} if path.suffix == ".jpg" else {}))
    return path


def read(path: Path, colors: tuple[str, ...], names: tuple[str, ...] | None = None) -> np.ndarray:
    rows = open_mask(path)
    meaning = choose_meaning(path, rows, names or NAMES[: len(colors)], colors)
    return meaning.read(rows.read(np.arange(rows.size[1]), np.arange(rows.size[0])))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_indices_are_classes_and_all_else_is_none(tmp_path: Path, suffix: str, dtype: type) -> None:
    values = np.arange(256 if dtype is np.uint8 else 2**16).astype(dtype).reshape(16, -1)
    path = write(tmp_path / f"mask{suffix}", values)
    expected = np.where(values < 4, values, NO_CLASS)
    np.testing.assert_array_equal(read(path, COLORS), expected)
    expected = np.where(values < 2, values, np.where(values == 255, 1, NO_CLASS))
    np.testing.assert_array_equal(read(path, TWO), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_class_colours_are_classes_and_all_else_is_none(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(60, 50, 4)
    rgb = RGB[mask]
    rgb[31, 17] = (1, 2, 3)
    mask[31, 17] = NO_CLASS
    np.testing.assert_array_equal(read(write(tmp_path / f"mask{suffix}", rgb), COLORS), mask)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_black_and_white_saved_as_colour_stays_black_and_white(tmp_path: Path, suffix: str) -> None:
    mask = random_mask(40, 30)
    grey = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    path = write(tmp_path / f"mask{suffix}", grey)
    for colors in (TWO, ("#ffffff", "#1b7f3b")):
        np.testing.assert_array_equal(read(path, colors), mask)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_black_and_white_are_colours_where_both_are_a_classs(tmp_path: Path, suffix: str) -> None:
    mask = draw_blocks(2)
    path = write(tmp_path / f"mask{suffix}", np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    np.testing.assert_array_equal(read(path, ("#ffffff", "#000000")), 1 - mask)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_colour_mask_of_background_alone_is_background(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mask{suffix}", np.full((40, 30, 3), 255, np.uint8))
    assert not read(path, ("#ffffff", "#1b7f3b")).any()
    assert not read(path, COLORS).any()


def test_a_palette_is_read_by_index_if_that_is_possible_and_else_by_colour(tmp_path: Path) -> None:
    mask, palette = random_mask(40, 30, 4), np.zeros((256, 3), np.uint8)
    palette[:4] = RGB[[3, 2, 0, 1]]  # indices that are classes are taken at their word
    palette[10:14] = RGB
    for name, shift in (("index", 0), ("color", 10)):
        picture = Image.fromarray(mask + np.uint8(shift), "P")
        picture.putpalette(palette.ravel().tolist())
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png", COLORS), mask)
        colormap = palette.T.astype(np.uint16) * 257
        tifffile.imwrite(
            tmp_path / f"{name}.tif", mask + np.uint8(shift), photometric="palette", colormap=colormap
        )
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif", COLORS), mask)


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_lossy_colours_are_the_nearest_class(tmp_path: Path, form: str) -> None:
    mask, path = draw_blocks(4), tmp_path / f"mask.{form}"
    if form == "jpg":
        write(path, RGB[mask])
    else:
        tifffile.imwrite(path, RGB[mask], tile=(64, 64), photometric="rgb", compression="jpeg")
    labels = read(path, COLORS)
    inner = (slice(8, None, 16), slice(8, None, 16))  # compression smears the borders of blocks
    np.testing.assert_array_equal(labels[inner], mask[inner])
    assert (labels == mask).mean() > 0.95


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    hnp.arrays(np.uint8, st.tuples(st.integers(2, 30), st.just(3)), unique=False),
)
def test_the_nearest_colour_is_that_of_the_least_distance(rgb: np.ndarray, colors: np.ndarray) -> None:
    """Of two that are as near the first."""
    names = tuple(map(str, range(len(colors))))
    distances = ((rgb[:, :, None].astype(int) - colors.astype(int)) ** 2).sum(axis=-1)
    found = histoseg.meaning._Colors(colors, names, lossy=True).read(rgb)
    np.testing.assert_array_equal(found, distances.argmin(axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [40, 95])
def test_lossy_greys_of_two_classes_are_cut_in_the_middle(
    tmp_path: Path, channels: int, quality: int
) -> None:
    mask = draw_blocks(2)
    values = mask * np.uint8(255) if channels == 1 else np.dstack([mask * np.uint8(255)] * 3)
    labels = read(write(tmp_path / "mask.jpg", values, quality), TWO)
    np.testing.assert_array_equal(labels, mask)


@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_indices_of_many_classes_are_refused(tmp_path: Path, channels: int) -> None:
    """Blurred, the border between classes 1 and 3 would hold class 2."""
    mask = draw_blocks(4)
    path = write(tmp_path / "mask.jpg", mask if channels == 1 else np.dstack([mask] * 3))
    with pytest.raises(TruthError, match="lossy, expected class indices of 4 classes"):
        read(path, COLORS)


def test_classes_of_one_colour_are_refused_only_where_colour_decides(tmp_path: Path) -> None:
    colors, mask = ("#FFFFFF", "#d98cb3", "#ffffff"), random_mask(40, 30, 3)
    with pytest.raises(TruthError, match=r"'glass' and 'tumour' of the model are both #ffffff"):
        read(write(tmp_path / "rgb.png", RGB[mask]), colors)
    np.testing.assert_array_equal(read(write(tmp_path / "index.png", mask), colors), mask)


def test_a_wrong_value_and_what_was_expected_are_said_in_words(tmp_path: Path) -> None:
    rows = open_mask(write(tmp_path / "rgb.png", RGB[random_mask(40, 30, 4)]))
    by_color = choose_meaning(Path("m"), rows, NAMES, COLORS)
    assert by_color.describe(np.array([1, 2, 254], np.uint8)) == "the colour #0102fe"
    assert "#d98cb3 (stroma), #4b2e83 (tumour)" in by_color.expected
    rows = open_mask(write(tmp_path / "index.png", random_mask(40, 30, 2)))
    by_index = choose_meaning(Path("m"), rows, NAMES[:2], COLORS[:2])
    assert by_index.describe(np.uint16(300)) == "the value 300"
    assert by_index.expected == "class indices 0 to 1, or 0 and 255"
    names = tuple(f"class {index}" for index in range(200))
    colors = tuple(f"#{index:02x}0000" for index in range(200))
    rows = open_mask(tmp_path / "rgb.png")
    assert choose_meaning(Path("m"), rows, names, colors).expected.endswith(
        "#0b0000 (class 11), and 188 more"
    )


def test_what_real_jpeg_masks_say(shared_data: Path) -> None:
    for path in sorted((shared_data / "ocdc" / "masks").iterdir()):
        picture = cv2.imread(str(path))
        labels = read(path, TWO)
        np.testing.assert_array_equal(labels, picture[..., 2] > 127)
        assert 0 < labels.mean() < 1
