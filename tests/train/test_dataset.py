from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import DataError
from histoseg_train.dataset import (
    Dataset,
    Item,
    MaskRule,
    Split,
    _split,
    find_dataset,
    find_held_out,
    list_items,
    name_held_out,
)
from histoseg_train.description import Description, write_description

MakeFolder = Callable[..., Path]


def stems(dataset: Dataset, *, held_out: bool) -> list[str]:
    return [item.stem for item in dataset.items if item.held_out is held_out]


def write_toml(folder: Path, **extra: str) -> Path:
    lines = {"name": '"a"', "images": '"images"', "masks": '"masks"', "spacing_um_px": "0.5", **extra}
    path = folder / "set.toml"
    written = "".join(f"{key} = {value}\n" for key, value in lines.items() if value)
    path.write_text(f"[[source]]\n{written}")
    return path


def test_a_folder_is_split_by_seed(make_folder: MakeFolder) -> None:
    folder = make_folder(10)
    first = find_dataset(folder, validation=0.2, seed=1)
    assert len(first.held_out) == 2
    assert len(first.training) == 8
    assert find_dataset(folder, validation=0.2, seed=1) == first
    assert any(find_dataset(folder, seed=seed).held_out != first.held_out for seed in range(2, 6))


def test_a_val_folder_is_held_out(make_folder: MakeFolder) -> None:
    folder = make_folder(3)
    (make_folder(2, name="other")).rename(folder / "val")
    dataset = find_dataset(folder)
    assert stems(dataset, held_out=False) == ["im0", "im1", "im2"]
    assert stems(dataset, held_out=True) == ["im0", "im1"]


def test_held_out_patterns(make_folder: MakeFolder) -> None:
    dataset = find_dataset(write_toml(make_folder(5), held_out='["im1", "*4"]', weight="2"))
    assert stems(dataset, held_out=True) == ["im1", "im4"]
    assert dataset.items[0].weight == 2
    assert dataset.items[0].spacing_um_px == 0.5


def test_root_and_list(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(5)
    (folder / "list.txt").write_text("im0.jpg\nim2\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    dataset = list_items(write_toml(elsewhere, list='"list.txt"', threshold="9"), root=folder)
    assert [item.stem for item in dataset.items] == ["im0", "im2"]
    assert dataset.items[0].rule == MaskRule(threshold=9)


def test_values_keep_zero_for_the_background(make_folder: MakeFolder) -> None:
    dataset = list_items(write_toml(make_folder(2), values="{ 1 = 1, 2 = 1 }"))
    assert dict(dataset.items[0].rule.values) == {0: 0, 1: 1, 2: 1}


def test_images_without_masks_are_never_held_out(make_folder: MakeFolder) -> None:
    path = write_toml(make_folder(4))
    bare = '[[source]]\nname = "bare"\nimages = "images"\nspacing_um_px = 0.5\n'
    path.write_text(path.read_text() + bare)
    dataset = find_dataset(path, validation=0.9)
    assert [item.source for item in dataset.training].count("bare") == 4
    assert {item.source for item in dataset.labelled} == {"a"}
    assert dataset.sources[1]["masks"].startswith("none")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"colour": "1"}, "unknown field 'source.*colour'"),
        ({"spacing_um_px": "-1"}, "spacing_um_px is -1"),
        ({"weight": "0"}, "weight is 0.*leave masks away"),
        ({"dilate_um": "-1"}, "dilate_um is -1"),
        ({"stems": '["nobody*"]'}, "no image matches 'nobody"),
        ({"held_out": '["nobody"]'}, "no image matches 'nobody'"),
        ({"values": '{ 1 = "a" }'}, "values are"),
        ({"values": "{ 1 = 1 }", "threshold": "3"}, "expected one of them"),
        ({"images": '"absent"'}, "no such folder"),
        ({"list": '"absent.txt"'}, "cannot read the list"),
        ({"held_out": '["*"]'}, "0 images to train on"),
        ({"masks": "", "held_out": '["im1"]'}, "held_out is given and masks is not"),
        ({"masks": "", "dilate_um": "1"}, "dilate_um is given and masks is not"),
        ({"masks": ""}, "no image has a mask"),
    ],
)
def test_wrong_dataset_files_are_refused(make_folder: MakeFolder, extra: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_dataset(write_toml(make_folder(3), **extra))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[[source", "source = 3", "\0"])
def test_files_that_are_no_dataset_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "set.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"set\.toml"):
        find_dataset(path)


def test_grown_masks_are_told_of(make_folder: MakeFolder) -> None:
    dataset = list_items(write_toml(make_folder(2), dilate_um="1.5"))
    assert dataset.items[0].dilate_um == 1.5
    assert dataset.sources[0]["masks"] == "grown by 1.5 um"


def test_a_described_folder(make_folder: MakeFolder) -> None:
    folder = make_folder(4)
    said = Description(0.25, ("a", "b"), ("#000000", "#ffffff"), licence="CC0", patches={"size": 9})
    write_description(folder, said)
    for index, name in enumerate(["s_0_0", "s_0_64", "t_1_0_0", "t_1_9_0"]):
        for kind in ("images", "masks"):
            (folder / kind / f"im{index}.png").rename(folder / kind / f"{name}.png")
    dataset = find_dataset(folder, validation=0.5)
    assert {item.spacing_um_px for item in dataset.items} == {0.25}
    assert dataset.sources[0]["licence"] == "CC0"
    assert {item.group for item in dataset.items} == {"s", "t_1"}
    assert len({item.group for item in dataset.held_out}) == 1
    assert len(dataset.held_out) == 2


def test_unpaired_files_are_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(3)
    (folder / "masks" / "im1.png").unlink()
    with pytest.raises(DataError, match=r"im1.png: no mask 'im1\.\*'.*1 of 3"):
        find_dataset(folder)
    (folder / "images" / "im1.png").unlink()
    (folder / "images" / "im2.png").unlink()
    with pytest.raises(DataError, match="no image 'im2"):
        find_dataset(folder)


def test_two_files_of_one_stem_are_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(2)
    (folder / "images" / "im0.jpg").write_bytes((folder / "images" / "im0.png").read_bytes())
    with pytest.raises(DataError, match="same stem"):
        find_dataset(folder)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing"):
        find_dataset(tmp_path / "absent")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no \.png"):
        find_dataset(tmp_path)


def test_one_image_cannot_be_split(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match="0 held out"):
        find_dataset(make_folder(1))


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 99))
def test_what_training_held_out_at_random_is_found_again(count: int, share: float, seed: int) -> None:
    blank = Item("data", "", Path(), Path(), None, MaskRule(), 1.0, held_out=False)
    items = tuple(replace(blank, stem=f"im{index:03d}") for index in range(count))
    plain = Dataset(items, ())
    trained = _split(plain, Split(share, seed))
    said = {"split": {"validation": share, "seed": seed}, "held_out": name_held_out(trained)}
    assert find_held_out(plain, said) == trained.held_out
    other = Dataset(tuple(replace(item, stem=f"x{item.stem}") for item in items), ())
    assert find_held_out(other, said) == ()
    for wrong in ({}, {"split": 3}, {"split": {"validation": "x", "seed": 1}}, {"split": None}):
        assert find_held_out(plain, wrong) == ()
    assert find_held_out(trained, {}) == trained.held_out
