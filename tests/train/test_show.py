from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import HistosegError
from histoseg_train.augment import AugmentOptions
from histoseg_train.cli import command
from histoseg_train.contactsheet import CELL_PX, choose_items, draw_outlines, draw_samples, draw_sheet
from histoseg_train.dataset import Item, MaskRule, list_items
from histoseg_train.images import SampleStore
from histoseg_train.job import PatchOptions
from histoseg_train.statistics import count_classes, measure_shares

COLORS = ("#ffffff", "#00a000")
MakeFolder = Callable[..., Path]


def run(*words: object) -> Result:
    return CliRunner().invoke(command, ["show", *map(str, words)])


def make_items(*sizes: int) -> list[Item]:
    path = Path("x")
    return [
        Item(f"s{source}", str(index), path, path, None, MaskRule(), weight=1, held_out=False)
        for source, size in enumerate(sizes)
        for index in range(size)
    ]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    count=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_sources_take_turns_on_the_sheet(sizes: list[int], count: int, seed: int) -> None:
    items = make_items(*sizes)
    chosen = choose_items(items, range(len(items)), count, seed=seed)
    assert len(chosen) == len(set(chosen)) == min(count, len(items))
    shown = [sum(items[index].source == f"s{source}" for index in chosen) for source in range(len(sizes))]
    for number, size in zip(shown, sizes, strict=True):
        assert number == size or number >= max(shown) - 1


@given(seed=st.integers(0, 999))
def test_outlines_lie_inside_their_class_at_its_rim(seed: int) -> None:
    labels = np.kron(np.random.default_rng(seed).integers(0, 3, (5, 6)), np.ones((7, 7))).astype(np.uint8)
    rgb = np.full((*labels.shape, 3), 100, np.uint8)
    drawn = draw_outlines(rgb, labels, ("#ffffff", "#ff0000", "#0000ff"))
    for index, color in ((1, (255, 0, 0)), (2, (0, 0, 255))):
        assert np.all(labels[(drawn == color).all(axis=2)] == index)
    padded = np.pad(labels, 1, mode="edge")
    around = np.stack(
        [padded[y : y + labels.shape[0], x : x + labels.shape[1]] for y in range(3) for x in range(3)]
    )
    rim = (around != labels).any(axis=0) & (labels > 0)
    np.testing.assert_array_equal((drawn != rgb).any(axis=2), rim)


def test_the_sheet_shows_what_training_draws(make_folder: MakeFolder) -> None:
    store = SampleStore(list_items(make_folder(2)).items, classes=2, spacing_um_px=0.5)
    options = PatchOptions(size=32, augment=AugmentOptions(elastic=0.5))
    drawn = draw_samples(store, [0, 1], options, draws=3, seed=1)
    assert [len(row) for row in drawn] == [3, 3]
    assert len({sample.rgb.tobytes() for row in drawn for sample in row}) == 6
    sheet = draw_sheet(store, [0, 1], drawn, COLORS)
    assert sheet.shape[1] >= 4 * CELL_PX
    outlined = draw_outlines(drawn[1][2].rgb, drawn[1][2].labels, COLORS)
    places = np.lib.stride_tricks.sliding_window_view(sheet[sheet.shape[0] // 2 :, -CELL_PX:], (32, 32, 3))
    assert (places == outlined).all(axis=(3, 4, 5)).any()


def test_counts_add_up_by_source(make_folder: MakeFolder) -> None:
    folder = make_folder(3)
    make_folder(2, name="other", seed=9).rename(folder / "val")
    cv2.imwrite(str(folder / "val" / "masks" / "im1.png"), np.zeros((64, 64), np.uint8))
    store = SampleStore(list_items(folder).items, classes=2, spacing_um_px=0.5)
    (background, disc), (_, held_disc) = count_classes(store, classes=2)
    assert (background.images, background.held_out, held_disc.held_out) == (3, False, True)
    assert background.pixels + disc.pixels == 3 * 64 * 64
    assert background.share + disc.share == pytest.approx(1)
    assert held_disc.images_with_it == 1
    assert measure_shares([store[0], store[1], store[2]], classes=2)[1] == pytest.approx(disc.share)


def test_a_folder_that_describes_itself_needs_no_options(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(3)
    said = {"spacing_um_px": 0.25, "class_names": ["glass", "disc"], "class_colors": list(COLORS)}
    (folder / "dataset.json").write_text(json.dumps(said))
    done = run(folder, "-o", tmp_path / "sheet.png", "--draws", 2)
    assert done.exit_code == 0, done.output
    assert "glass" in done.output
    pixels = [int(number.replace(",", "")) for number in re.findall(r"\d+,\d+", done.output)]
    assert sum(pixels) == 3 * 64 * 64  # at its own um/px
    other = run(folder, "-o", tmp_path / "b.png", "--draws", 2, "--classes", "a=#ffffff,b=#000000")
    assert "glass" not in other.output
    picture = cv2.imread(str(tmp_path / "sheet.png"))
    assert picture.shape[0] > 3 * CELL_PX


def test_held_out_images_are_counted_and_not_shown(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(2)
    make_folder(3, name="other").rename(folder / "val")
    done = run(folder, "-o", tmp_path / "sheet.png", "--draws", 1)
    assert "(held out)" in done.output
    assert "2 images, patches drawn of each: 1;" in done.output


def test_colour_masks_need_only_their_colours(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(2)
    for mask in (folder / "masks").iterdir():
        labels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 0
        cv2.imwrite(str(mask), np.array([[0, 0, 0], [40, 20, 200]], np.uint8)[labels.astype(int)])
    done = run(folder, "-o", tmp_path / "s.png", "--classes", "glass=#000000,disc=#c81428")
    assert done.exit_code == 0, done.output
    wrong = run(folder, "-o", tmp_path / "s.png", "--classes", "glass=#000000,disc=#c81429")
    assert wrong.exit_code == 1
    assert "holds the colour #c81428" in str(wrong.exception)


def test_bad_input_ends_in_one_line(make_folder: MakeFolder, tmp_path: Path) -> None:
    (make_folder(1) / "dataset.json").write_text("{")
    for words in ((tmp_path / "data", "-o", "s.png"), (tmp_path / "absent", "-o", "s.png")):
        done = run(*words)
        assert done.exit_code == 1
        assert isinstance(done.exception, HistosegError)
    (tmp_path / "data" / "dataset.json").unlink()
    done = run(tmp_path / "data", "-o", tmp_path / "absent" / "s.png")
    assert done.exit_code == 1
    assert "cannot be written" in str(done.exception)
