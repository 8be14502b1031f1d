from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import OutputError
from histoseg.journal import Journal

RUN = {"model": "abc", "slide": ["s", 3], "options": {"blend": None}}


def write(path: Path, count: int, *, first: int = 0) -> None:
    with Journal(path, RUN) as journal:
        assert len(list(journal.replay())) == first
        for number in range(first, count):
            journal.append({"number": np.array(number), "labels": np.full((3, 5), number, np.uint8)})


def read(path: Path, run: dict = RUN) -> list[int]:
    with Journal(path, run) as journal:
        return [int(frame["number"]) for frame in journal.replay()]


def test_what_is_appended_is_replayed_in_order(tmp_path: Path) -> None:
    write(tmp_path / "j", 3)
    write(tmp_path / "j", 5, first=3)
    assert read(tmp_path / "j") == [0, 1, 2, 3, 4]
    with Journal(tmp_path / "j", RUN) as journal:
        np.testing.assert_array_equal(list(journal.replay())[4]["labels"], np.full((3, 5), 4))


@given(st.integers(0, 2000), st.binary(max_size=40))
def test_what_was_cut_off_or_overwritten_ends_it(
    tmp_path_factory: pytest.TempPathFactory, kept: int, more: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    write(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept] + more)
    sound = read(path)
    assert sound == list(range(len(sound)))
    write(path, 5, first=len(sound))
    assert read(path) == [0, 1, 2, 3, 4]


@given(st.data())
def test_a_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    write(path, 3)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    sound = read(path)
    assert len(sound) < 3
    assert sound == list(range(len(sound)))


def test_another_run_begins_afresh_and_says_what_changed(tmp_path: Path) -> None:
    write(tmp_path / "j", 2)
    other = {**RUN, "model": "abd", "truth": None}
    with Journal(tmp_path / "j", other) as journal:
        assert journal.changed == ("model",)
        assert list(journal.replay()) == []
    with Journal(tmp_path / "j", RUN) as journal:
        assert journal.changed == ("model",)
    with Journal(tmp_path / "j", RUN) as journal:
        assert journal.changed == ()


def test_a_file_of_somebody_else_is_begun_afresh(tmp_path: Path) -> None:
    for text in (b"", b"hello", json.dumps([1]).encode() + b"\n", b"{}"):
        (tmp_path / "j").write_bytes(text)
        assert read(tmp_path / "j") == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="none/j"):
        Journal(tmp_path / "none" / "j", RUN)


def test_a_full_disk_is_told_of_in_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="make room"):
        Journal(full, RUN)
