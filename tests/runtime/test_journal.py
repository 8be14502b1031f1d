from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.errors import OutputError
from histoseg.journal import Journal

RUN = {"model": "abc", "slide": ["s", 3], "options": {"blend": None}}


def write(path: Path, count: int, *, first: int = 0) -> None:
    with Journal(path, RUN, {"panel_columns": 3}) as journal:
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
        journal.append({"number": np.array(7)})
    with Journal(tmp_path / "j", RUN) as journal:
        assert journal.changed == ("model",)
        journal.append({"number": np.array(8)})
    with Journal(tmp_path / "j", RUN) as journal:
        assert journal.changed == ()


def test_a_file_of_somebody_else_is_begun_afresh(tmp_path: Path) -> None:
    for text in (b"", b"hello", json.dumps([1]).encode() + b"\n", b"{}"):
        (tmp_path / "j").write_bytes(text)
        assert read(tmp_path / "j") == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="none/j"):
        Journal(tmp_path / "none" / "j", RUN)


def test_a_full_disk_is_told_of_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "j", RUN) as journal:
        journal.append({"number": np.array(0)})
        monkeypatch.setattr("histoseg.journal.os.fsync", fail)
        with pytest.raises(OutputError, match="make room, and the same command goes on"):
            journal.append({"number": np.array(1)})
    assert (tmp_path / "j").exists()
    with pytest.raises(OutputError, match=r"make room$"):
        Journal(tmp_path / "k", RUN)
    assert not (tmp_path / "k").exists()


def test_a_journal_without_a_frame_is_not_kept(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN) as journal:
        assert list(journal.replay()) == []
        assert (tmp_path / "j").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_layout_of_the_run_that_began_stands(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN, {"panel_columns": 3}) as journal:
        journal.append({"number": np.array(0)})
    with Journal(tmp_path / "j", RUN, {"panel_columns": 4}) as journal:
        assert journal.layout == {"panel_columns": 3}
    with Journal(tmp_path / "j", {**RUN, "model": "new"}, {"panel_columns": 4}) as journal:
        assert journal.layout == {"panel_columns": 4}


@given(
    st.dictionaries(
        st.text(max_size=9),
        hnp.arrays(
            st.sampled_from([np.uint8, np.int64, np.float32]),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        ),
        max_size=4,
    )
)
def test_arrays_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path, RUN) as journal:
        journal.append(arrays)
    with Journal(path, RUN) as journal:
        (back,) = journal.replay()
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_a_damaged_beginning_is_told_of(tmp_path: Path) -> None:
    write(tmp_path / "j", 2)
    data = bytearray((tmp_path / "j").read_bytes())
    data[20] ^= 4
    (tmp_path / "j").write_bytes(data)
    with Journal(tmp_path / "j", RUN) as journal:
        assert journal.changed == ("journal",)


def test_only_an_order_to_begin_afresh_tells_orders_apart(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN | {"order": "monday"}) as journal:
        journal.append({"number": np.array(0)})
    for order, frames in (("monday", 1), (None, 1), ("tuesday", 0)):
        with Journal(tmp_path / "j", RUN | {"order": order}) as journal:
            assert len(list(journal.replay())) == frames
