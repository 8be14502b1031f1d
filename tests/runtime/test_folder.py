"""Results appear whole or not at all, and nobody else's files are lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from histoseg.errors import OutputError, SlideError
from histoseg.folder import make_folder

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
            pytest.raises(OutputError, match="another run is writing it"),
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
        assert list(part.iterdir()) == []
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
