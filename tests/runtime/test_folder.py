"""Results appear whole or not at all, and nobody else's files are lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from histoseg.errors import OutputError, SlideError, TruthError
from histoseg.folder import hold_folder, make_folder
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
    with hold_folder(final, NAMES, journal=".j") as held:
        (held.part / ".j").write_text("bands")
        (held.part / "half").write_text("half")
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OutputError("full"), SlideError("share"), MemoryError()]
)
def test_a_journal_outlives_a_failure_and_is_no_part_of_the_result(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        leave_journal(tmp_path / "b" / "a", error)
    assert tree(tmp_path) == {"b/.a.part/.j": "bands"}
    with hold_folder(tmp_path / "b" / "a", NAMES, journal=".j") as held:
        assert (held.part / ".j").read_text() == "bands"
        write_result(held.part)
        held.publish()
    assert sorted(tree(tmp_path)) == ["b/a/labels.tif", "b/a/report.json"]


def test_a_journal_does_not_outlive_a_wrong_truth(tmp_path: Path) -> None:
    with pytest.raises(TruthError):
        leave_journal(tmp_path / "a", TruthError("no class"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_published_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".a.part" / ".j").write_text("bands")
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a", "old")
    before = tree(tmp_path)
    with hold_folder(tmp_path / "a", NAMES, journal=".j"):
        pass
    assert tree(tmp_path) == before
    with hold_folder(tmp_path / "new" / "b", NAMES, journal=".j"):
        pass
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_journal_left_in_a_result_by_a_kill_is_no_strangers_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a")
    (tmp_path / "a" / ".j").write_text("bands")
    with hold_folder(tmp_path / "a", NAMES, journal=".j") as held:
        write_result(held.part)
        held.publish()
    assert sorted(tree(tmp_path)) == ["a/labels.tif", "a/report.json"]


def test_a_result_half_removed_is_never_taken_for_one(tmp_path: Path) -> None:
    """A run was killed while it removed the older result."""
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "labels.tif").write_text("old")
    with make_folder(tmp_path / "a", NAMES) as part:
        write_result(part)
    assert sorted(tree(tmp_path)) == ["a/labels.tif", "a/report.json"]


def test_a_folder_of_somebody_elses_of_our_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "precious").write_text("mine")
    with make_folder(tmp_path / "a", NAMES) as part:
        write_result(part)
    assert tree(tmp_path)[".a.old/precious"] == "mine"


def test_a_run_that_cannot_have_the_folder_touches_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, a signal: the run that holds the folder must not lose what it has."""
    with make_folder(tmp_path / "a", NAMES) as part:
        write_result(part)
        before = tree(tmp_path)

        def fail(folder: Path) -> None:
            raise OSError(24, "Too many open files", str(folder))

        with monkeypatch.context() as patched:
            patched.setattr("histoseg.folderlock._lock", fail)
            with pytest.raises(OutputError, match="Too many open files"), make_folder(tmp_path / "a", NAMES):
                pytest.fail("must not begin")
        assert tree(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_folder(tmp_path: Path) -> None:
    hold, release = os.pipe()
    with make_folder(tmp_path / "a", NAMES) as part:
        write_result(part)
        child = os.fork()
        if child == 0:
            os.close(release)
            os.read(hold, 1)
            os._exit(0)
    try:
        with make_folder(tmp_path / "a", NAMES) as part:
            write_result(part, "again")
    finally:
        os.close(release)
        os.close(hold)
        os.waitpid(child, 0)


def test_links_in_a_circle_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="choose another -o"), make_folder(tmp_path / "a" / "c", NAMES):
        pytest.fail("must not begin")


def test_without_locks_a_living_owner_holds_and_a_dead_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoseg.folderlock._lock", lambda folder: None)
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
