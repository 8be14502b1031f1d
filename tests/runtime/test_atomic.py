"""A file that appears whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.atomic import write_whole

OLD = b"what was there before"


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(contents=st.lists(st.binary(max_size=99), min_size=1, max_size=4))
def test_a_file_shows_what_was_written_last_and_whole(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("written") / "a.bin"
    before = None
    for content in contents:
        with write_whole(path) as part, part.open("wb") as file:
            for byte in content:
                file.write(bytes([byte]))
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before, (
                "half a file is nobody's business"
            )
        assert path.read_bytes() == content
        assert list_files(path.parent) == ["a.bin"]
        before = content


def write(path: Path, content: bytes | None, reason: BaseException | None = None) -> None:
    with write_whole(path) as part:
        if content is not None:
            part.write_bytes(content)
        if reason is not None:
            raise reason


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize("written", [None, b"half"])
def test_after_an_exception_all_is_as_before(
    tmp_path: Path, failure: type[BaseException], old: bytes | None, written: bytes | None
) -> None:
    path = tmp_path / "a.bin"
    if old is not None:
        path.write_bytes(old)
    reason = failure("the reason")
    with pytest.raises(failure) as caught:
        write(path, written, reason)
    assert caught.value is reason
    assert (path.read_bytes() if path.exists() else None) == old
    assert list_files(tmp_path) == ([] if old is None else ["a.bin"])


def test_a_file_that_cannot_get_its_name_leaves_nothing(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="taken") as caught:
        write(taken, b"new")
    assert Path(caught.value.filename2) == taken, "by this a caller knows which of several it was"
    with pytest.raises(FileNotFoundError, match="nothing"):
        write(tmp_path / "nothing", None)
    assert list_files(tmp_path) == ["taken"]
    assert list_files(taken) == ["mine.txt"]


@pytest.mark.parametrize("fails", [True, False])
def test_files_that_are_written_together_appear_together(tmp_path: Path, fails: bool) -> None:
    names = ["a.bin", "b.bin", "c.bin"]
    with suppress(RuntimeError), ExitStack() as stack:
        for name in names:
            stack.enter_context(write_whole(tmp_path / name)).write_bytes(name.encode())
            assert not set(names) & set(list_files(tmp_path))
        if fails:
            raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == (
        {} if fails else {name: name for name in names}
    )


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(RuntimeError, match="the reason"), write_whole(tmp_path / "file" / "a.bin"):
        raise RuntimeError("the reason")  # what lies in a file cannot even be removed
    assert (tmp_path / "file").read_bytes() == OLD


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    code = (
        "import sys, pathlib, histoseg.atomic as atomic\n"
        "with atomic.write_whole(pathlib.Path(sys.argv[1])) as part:\n"
        "    part.write_bytes(bytes(1000)); print('written', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    assert path.read_bytes() == OLD
    with write_whole(path) as part:
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list_files(tmp_path) == ["a.bin"]


@given(
    name=st.from_regex(r"[a-z]{1,9}(\.[a-z0-9]{1,5}){0,2}", fullmatch=True),
    suffix=st.sampled_from(["", ".h5"]),
)
def test_the_part_lies_hidden_beside_its_file(name: str, suffix: str) -> None:
    path = Path("folder") / name
    with pytest.raises(FileNotFoundError), write_whole(path, suffix=suffix) as part:
        pass
    assert part.parent == path.parent
    assert part.name.startswith(".")
    assert part.name.endswith(suffix or ".part")
