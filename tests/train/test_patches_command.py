from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from histoseg.demo import draw_slide, write_pyramid
from histoseg.errors import DataError, HistosegError
from histoseg_train.cli import command
from histoseg_train.dataset import find_dataset, list_items
from histoseg_train.images import SampleStore, count_pixels

SLIDES = 3


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides with masks beside them."""
    folder = tmp_path_factory.mktemp("slides")
    for index in range(SLIDES):
        rgb, truth = draw_slide(300, seed=index)
        write_pyramid(folder / f"s{index}.tif", rgb, 0.5)
        cv2.imwrite(str(folder / f"s{index}.png"), truth)
    return folder


def run(slides: Path, output: Path, *more: object, pattern: str = "*.tif") -> Result:
    words = ["patches", slides / pattern, "--annotations", slides, "-o", output, "--size", 128, *more]
    return CliRunner().invoke(command, [str(word) for word in words])


def test_slides_become_a_training_set_split_by_slide(slides: Path, tmp_path: Path) -> None:
    done = run(slides, tmp_path / "data", "--overlap", 32, "--classes", "glass=#ffffff,nucleus=#ff0000")
    assert done.exit_code == 0, done.output
    assert "1 of them held out" in done.output
    dataset = find_dataset(tmp_path / "data")
    sides = [{item.group for item in items} for items in (dataset.training, dataset.held_out)]
    assert sorted(map(len, sides)) == [1, 2]
    assert not sides[0] & sides[1]
    said = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert said["class_names"] == ["glass", "nucleus"]
    pixels = count_pixels(SampleStore(dataset.items, classes=2, spacing_um_px=0.5))
    assert np.sum([s["pixels"] for s in said["patches"]["slides"]], axis=0).tolist() == pixels[:2].tolist()
    assert dataset.items[0].spacing_um_px == 0.5


def test_patches_of_one_folder_are_split_by_slide_too(slides: Path, tmp_path: Path) -> None:
    assert run(slides, tmp_path / "data", "--validation", 0).exit_code == 0
    assert not (tmp_path / "data" / "val").exists()
    for seed in range(4):
        dataset = find_dataset(tmp_path / "data", validation=0.5, seed=seed)
        assert not {item.group for item in dataset.training} & {item.group for item in dataset.held_out}
    assert run(slides, tmp_path / "one", "--validation", 0, pattern="s0.tif").exit_code == 0
    with pytest.raises(DataError, match="0 held out"):
        find_dataset(tmp_path / "one")


def test_the_same_command_gives_the_same_files(slides: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(slides, tmp_path / name, "--held-out", "s1").exit_code == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 10
    assert {path.stem[:2] for path in files if path.parts[0] == "val"} == {"s1"}
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def lose_a_mask(folder: Path) -> None:
    (folder / "s2.png").unlink()


def break_a_mask(folder: Path) -> None:
    cv2.imwrite(str(folder / "s2.png"), np.full((300, 300), 9, np.uint8))


def break_a_slide(folder: Path) -> None:
    (folder / "s2.tif").write_bytes(b"rubbish")


@pytest.mark.parametrize("ruin", [lose_a_mask, break_a_mask, break_a_slide])
def test_what_fails_leaves_nothing(slides: Path, tmp_path: Path, ruin: Callable[[Path], None]) -> None:
    for file in slides.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ruin(tmp_path)
    done = run(tmp_path, tmp_path / "made" / "data")
    assert done.exit_code == 1
    assert isinstance(done.exception, HistosegError)
    assert "s2" in str(done.exception)
    assert not (tmp_path / "made").exists()


def test_an_existing_folder_is_never_replaced(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    done = run(slides, tmp_path / "data")
    assert done.exit_code == 1
    assert "expected a free name" in str(done.exception)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("words", [["--overlap", 128], ["--classes", "one=#ffffff"], ["--size", 0]])
def test_usage_errors_exit_2(slides: Path, tmp_path: Path, words: list[object]) -> None:
    assert run(slides, tmp_path / "data", *words).exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is a list|is \\[\\]"),
        ("{", "dataset.json: .*repair or remove"),
        ('{"spacing_um_px": -1, "class_names": ["a", "b"], "class_colors": ["#000000", "#ffffff"]}', "is -1"),
        (
            '{"spacing_um_px": 1, "class_names": ["a", "b"], "class_colors": ["red", "#ffffff"]}',
            "class_colors",
        ),
        ('{"spacing_um_px": 1, "class_names": ["a", "b"], "class_colors": ["#aa0000", "#AA0000"]}', "differ"),
        ('{"spacing_um_px": 1, "class_names": ["a", "a"], "class_colors": ["#000000", "#ffffff"]}', "differ"),
    ],
)
def test_wrong_descriptions_are_refused(make_folder: Callable[..., Path], text: str, message: str) -> None:
    folder = make_folder(2)
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        list_items(folder)
    assert "\n" not in str(caught.value)
    assert "model card" not in str(caught.value)
