"""Results appear whole or not at all, and nobody else's files are lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from histoseg.errors import OutputError, SlideError
from histoseg.folder import make_folder
from histoseg.owner import OWNER_NAME, write_owner

NAMES = ("labels.tif", "report.json")


def write_result(folder: Path, words: str = "new") -> None:
    (folder / "labels.tif").write_text(words)
    (folder / "report.json").write_text(json.dumps({"histoseg": "0"}))


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("report", ["{}", "nothing", "[1]"])
def test_a_folder_with_a_report_of_somebody_elses_is_kept(tmp_path: Path, report: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(report)
    with pytest.raises(OutputError, match="holds no histoseg result"), make_folder(tmp_path / "a", NAMES):
        pytest.fail("must not begin")
    assert tree(tmp_path) == {"a/report.json": report}


def test_a_strangers_file_in_an_older_result_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"notes\.txt.*would be lost"), make_folder(tmp_path / "a", NAMES):
        pytest.fail("must not begin")
    assert tree(tmp_path) == before


def test_an_older_result_is_replaced_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_result(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for words in ("second", "third"):
        with make_folder(tmp_path / "link", NAMES) as part:
            write_result(part, words)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "labels.tif").read_text() == words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_an_interrupt_between_the_renames_keeps_the_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a", "old")
    before = tree(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), make_folder(tmp_path / "a", NAMES) as part:
        write_result(part)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems only")
def test_a_second_run_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    with make_folder(tmp_path / "a", NAMES) as part:
        write_result(part)
        with (
            pytest.raises(OutputError, match=r"another run \(process \d+ on .+\) is writing it"),
            make_folder(tmp_path / "a", NAMES),
        ):
            pytest.fail("must not begin")
    assert sorted(tree(tmp_path)) == ["a/labels.tif", "a/report.json"]
    with make_folder(tmp_path / "a", NAMES) as part:  # the lock ended with the first run
        write_result(part, "again")
    assert (tmp_path / "a" / "labels.tif").read_text() == "again"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.part" / "spool").mkdir(parents=True)
    (tmp_path / ".a.part" / "half").write_text("half")
    with make_folder(tmp_path / "a", NAMES) as part:
        assert [path.name for path in part.iterdir()] == [OWNER_NAME]
        write_result(part)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [TimeoutError("no rows came"), SlideError("torn"), ValueError("x")])
def test_errors_that_are_not_of_writing_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, make_folder(tmp_path / "new" / "a", NAMES):
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_errors_of_writing_name_the_folder(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with (
        pytest.raises(OutputError, match=r"a: cannot be written \(No space left"),
        make_folder(tmp_path / "a", NAMES),
    ):
        raise full
    with pytest.raises(OutputError, match="cannot be written"), make_folder(tmp_path / "a", NAMES) as part:
        (part / "absent" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def leave_journal(final: Path, error: BaseException) -> None:
    with make_folder(final, NAMES, journal=".j") as part:
        (part / ".j").write_text("bands")
        (part / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("full"), MemoryError()])
def test_a_journal_outlives_a_failure_and_is_no_part_of_the_result(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        leave_journal(tmp_path / "b" / "a", error)
    assert tree(tmp_path) == {"b/.a.part/.j": "bands"}
    with make_folder(tmp_path / "b" / "a", NAMES, journal=".j") as part:
        assert (part / ".j").read_text() == "bands"
        write_result(part)
    assert sorted(tree(tmp_path)) == ["b/a/labels.tif", "b/a/report.json"]


def test_a_journal_does_not_outlive_bad_input_nor_a_wish_to_begin_afresh(tmp_path: Path) -> None:
    with pytest.raises(SlideError):
        leave_journal(tmp_path / "a", SlideError("torn"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".a.part" / ".j").write_text("bands")
    with make_folder(tmp_path / "a", NAMES, journal=".j", fresh=True) as part:
        assert not (part / ".j").exists()
        write_result(part)


def test_a_journal_left_in_a_result_by_a_kill_is_no_strangers_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a")
    (tmp_path / "a" / ".j").write_text("bands")
    with make_folder(tmp_path / "a", NAMES, journal=".j") as part:
        write_result(part)
    assert sorted(tree(tmp_path)) == ["a/labels.tif", "a/report.json"]


def test_without_locks_a_living_owner_holds_and_a_dead_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoseg.folder._lock", lambda folder: None)
    part = tmp_path / ".a.part"
    part.mkdir()
    write_owner(part)
    with pytest.raises(OutputError, match=f"process {os.getpid()} on"), make_folder(tmp_path / "a", NAMES):
        pytest.fail("must not begin")
    for change in ({"since": 1.0}, {"host": "elsewhere"}, {"pid": 2**22 + 1}, {"pid": "x"}):
        owner = json.loads((part / OWNER_NAME).read_text()) | change
        (part / OWNER_NAME).write_text(json.dumps(owner))
        with make_folder(tmp_path / "a", NAMES) as folder:
            write_result(folder)
        part.mkdir()
        write_owner(part)
