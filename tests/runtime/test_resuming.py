"""A run that stopped at any moment goes on within the slide and ends with the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histoseg import job
from histoseg.demo import write_pyramid
from histoseg.errors import SlideError
from histoseg.job import JOURNAL_NAME, segment_slide
from histoseg.options import RunOptions
from histoseg.progress import RunProgress

# what is the same on every run; the two reports hold seconds
FILES = ("labels.tif", "objects.geojson.gz", "overlay.png", "tissue.png")


class StopError(Exception):
    """Stands for what stops a run from outside."""


@pytest.fixture(scope="module")
def tall_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many rows of tiles: 60 x 600 px of dark squares at 0.5 um/px."""
    path = tmp_path_factory.mktemp("tall") / "tall.tif"
    rgb = np.random.default_rng(2).integers(30, 250, (60, 9, 3)).astype(np.uint8)
    write_pyramid(path, np.repeat(np.repeat(rgb, 10, axis=0), 10, axis=1), 0.5)
    return path


def read_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def stop_after(tiles: int) -> Callable[[RunProgress], None]:
    def stop(progress: RunProgress) -> None:
        if progress.done >= tiles:
            raise StopError

    return stop


def find_journal(out: Path, name: str = "tall") -> Path:
    return out / f".{name}.part" / JOURNAL_NAME


@pytest.mark.parametrize("panels", [None, 2])
@pytest.mark.parametrize("blend", ["cosine", "crop"])
def test_a_run_stopped_again_and_again_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
    open_model,
    tall_slide: Path,
    tmp_path: Path,
    blend: str,
    panels: int | None,
) -> None:
    session, options = open_model("unet"), RunOptions(blend=blend, batch_size=1)
    # by its own labels, which are known, and the other blend's, which are not
    segment_slide(tall_slide, session, tmp_path / "truth", RunOptions(blend="constant"))
    truth = tmp_path / "truth" / "tall" / "labels.tif"
    whole = segment_slide(tall_slide, session, tmp_path / "whole", options, truth=truth)
    if panels:
        monkeypatch.setattr("histoseg.planning.fit_panels", lambda *_, **__: panels)
        options = dataclasses.replace(options, max_memory=1 << 40)
    resumed, notes = [], []
    while True:
        try:
            report = segment_slide(
                tall_slide,
                session,
                tmp_path / "cut",
                options,
                truth=truth,
                on_progress=stop_after(7),
                on_note=notes.append,
            )
        except StopError:
            resumed.append(find_journal(tmp_path / "cut").stat().st_size)
            assert [path.name for path in find_journal(tmp_path / "cut").parent.iterdir()] == [JOURNAL_NAME]
        else:
            break
        assert len(resumed) < 50
    assert len(resumed) > 3
    assert resumed == sorted(resumed)
    assert report["resumed_bands"] > 0
    assert "goes on after" in notes[-1]
    assert read_files(tmp_path / "cut" / "tall") == read_files(tmp_path / "whole" / "tall")
    for key in ("classes", "score", "objects", "tissue"):
        assert report[key] == whole[key]
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["tall"]
    assert not (tmp_path / "cut" / "tall" / JOURNAL_NAME).exists()


def test_panels_of_the_run_that_began_stand(
    monkeypatch: pytest.MonkeyPatch, open_model, tall_slide: Path, tmp_path: Path
) -> None:
    """What fits into memory is measured: it may be another number of columns the next time."""
    session, options = open_model("unet"), RunOptions(max_memory=1 << 40, tissue=False)
    segment_slide(tall_slide, session, tmp_path / "whole", RunOptions(tissue=False))
    for columns in (2, 1):
        monkeypatch.setattr("histoseg.planning.fit_panels", lambda *_, columns=columns, **__: columns)
        stop = stop_after(30) if columns == 2 else None
        try:
            report = segment_slide(tall_slide, session, tmp_path / "cut", options, on_progress=stop)
        except StopError:
            continue
    assert report["resumed_bands"] > 0
    assert read_files(tmp_path / "cut" / "tall") == read_files(tmp_path / "whole" / "tall")


def test_a_finished_result_is_left_as_it_is(open_model, tall_slide: Path, tmp_path: Path) -> None:
    session = open_model("threshold")
    first = segment_slide(tall_slide, session, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tall").iterdir()}
    again = segment_slide(tall_slide, session, tmp_path, on_progress=stop_after(0))
    assert again == first | {"skipped": True}
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tall").iterdir()} == times
    assert json.loads((tmp_path / "tall" / "report.json").read_text()) == first
    with pytest.raises(StopError):
        segment_slide(tall_slide, session, tmp_path, overwrite=True, on_progress=stop_after(0))


def test_a_result_that_lost_a_file_is_made_again(open_model, tall_slide: Path, tmp_path: Path) -> None:
    session = open_model("threshold")
    segment_slide(tall_slide, session, tmp_path)
    before = read_files(tmp_path / "tall")
    (tmp_path / "tall" / "labels.tif").unlink()
    assert "skipped" not in segment_slide(tall_slide, session, tmp_path)
    assert read_files(tmp_path / "tall") == before


def test_what_changed_begins_afresh_and_says_so(open_model, tall_slide: Path, tmp_path: Path) -> None:
    slide = tmp_path / "tall.tif"
    slide.write_bytes(tall_slide.read_bytes())
    session, options = open_model("unet"), RunOptions(batch_size=1)
    changes: list[tuple[str, Callable[[], None], dict]] = [
        ("option overlap_px", lambda: None, {"options": dataclasses.replace(options, overlap_px=40)}),
        ("the slide", lambda: os.utime(slide, (1, 1)), {}),
        ("the model", lambda: None, {"session": open_model("conv")}),
    ]
    for name, change, given in changes:
        out = tmp_path / name
        with pytest.raises(StopError):
            segment_slide(slide, session, out, options, on_progress=stop_after(7))
        assert find_journal(out).exists()
        change()
        notes: list[str] = []
        call = {"session": session, "options": options} | given
        report = segment_slide(slide, call["session"], out, call["options"], on_note=notes.append)
        assert report["resumed_bands"] == 0
        assert len(notes) == 1
        assert "begins afresh" in notes[0]
        assert name in notes[0]


def test_overwrite_begins_afresh_without_a_word(open_model, tall_slide: Path, tmp_path: Path) -> None:
    session, options, notes = open_model("unet"), RunOptions(batch_size=1), []
    with pytest.raises(StopError):
        segment_slide(tall_slide, session, tmp_path, options, on_progress=stop_after(7))
    report = segment_slide(tall_slide, session, tmp_path, options, overwrite=True, on_note=notes.append)
    assert report["resumed_bands"] == 0
    assert notes == []


def test_a_slide_that_could_not_be_read_for_a_while_goes_on(
    monkeypatch: pytest.MonkeyPatch, open_model, tall_slide: Path, tmp_path: Path
) -> None:
    def tear(progress: RunProgress) -> None:
        if progress.done > 20:
            raise SlideError("the share is gone")

    session, options = open_model("unet"), RunOptions(batch_size=1)
    with pytest.raises(SlideError):
        segment_slide(tall_slide, session, tmp_path, options, on_progress=tear)
    assert segment_slide(tall_slide, session, tmp_path, options)["resumed_bands"] > 0


def test_a_result_beside_its_slide_is_known_again(open_model, tall_slide: Path, tmp_path: Path) -> None:
    slide = tmp_path / "tall.tif"
    slide.write_bytes(tall_slide.read_bytes())
    segment_slide(slide, open_model("threshold"), tmp_path)
    assert segment_slide(slide, open_model("threshold"), tmp_path)["skipped"]


def test_one_order_to_overwrite_is_followed_once(open_model, tall_slide: Path, tmp_path: Path) -> None:
    """A worker that was lost has its slide run again for the same order."""
    session, options = open_model("unet"), RunOptions(batch_size=1)
    segment_slide(tall_slide, session, tmp_path, options)
    with pytest.raises(StopError):
        segment_slide(tall_slide, session, tmp_path, options, overwrite="a", on_progress=stop_after(20))
    report = segment_slide(tall_slide, session, tmp_path, options, overwrite="a")
    assert report["resumed_bands"] > 0
    assert "skipped" not in report
    assert segment_slide(tall_slide, session, tmp_path, options, overwrite="a")["skipped"]
    assert segment_slide(tall_slide, session, tmp_path, options)["skipped"]
    assert "skipped" not in segment_slide(tall_slide, session, tmp_path, options, overwrite="b")


def test_a_result_of_another_run_is_replaced_with_a_word(
    open_model, tall_slide: Path, tmp_path: Path
) -> None:
    session, notes = open_model("threshold"), []
    segment_slide(tall_slide, session, tmp_path)
    segment_slide(tall_slide, session, tmp_path, RunOptions(simplify=False), on_note=notes.append)
    assert notes == [f"{tmp_path / 'tall'}: replaces a result that was of another run (option simplify)"]


def test_a_result_that_only_lacks_its_name_gets_it(open_model, tall_slide: Path, tmp_path: Path) -> None:
    """A kill between the last file and the folder's name."""
    session = open_model("threshold")
    whole = segment_slide(tall_slide, session, tmp_path)
    (tmp_path / "tall").rename(tmp_path / ".tall.part")
    report = segment_slide(tall_slide, session, tmp_path, on_progress=stop_after(0))
    assert report == whole | {"skipped": True}
    (tmp_path / "tall").rename(tmp_path / ".tall.part")
    (tmp_path / ".tall.part" / "labels.tif").write_bytes(b"torn by a power cut")
    assert "skipped" not in segment_slide(tall_slide, session, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tall"]


def test_a_run_finished_by_another_while_this_one_opened_is_taken(
    monkeypatch: pytest.MonkeyPatch, open_model, tall_slide: Path, tmp_path: Path
) -> None:
    session = open_model("threshold")
    plainly = job.open_run

    def open_late(*given, **named):
        monkeypatch.setattr(job, "open_run", plainly)
        segment_slide(tall_slide, session, tmp_path)
        return plainly(*given, **named)

    monkeypatch.setattr(job, "open_run", open_late)
    assert segment_slide(tall_slide, session, tmp_path, on_progress=stop_after(0))["skipped"]


def test_a_limit_on_memory_changes_no_result_but_how_bands_are_cut(
    open_model, tall_slide: Path, tmp_path: Path
) -> None:
    session, options = open_model("unet"), RunOptions(batch_size=1)
    limited = dataclasses.replace(options, max_memory=1 << 40)
    with pytest.raises(StopError):
        segment_slide(tall_slide, session, tmp_path, options, on_progress=stop_after(7))
    notes: list[str] = []
    assert not segment_slide(tall_slide, session, tmp_path, limited, on_note=notes.append)["resumed_bands"]
    assert "option max_memory" in notes[0]
    assert segment_slide(tall_slide, session, tmp_path, options)["skipped"]


def test_a_note_of_what_is_there_is_not_given_where_the_run_goes_on(
    open_model, tall_slide: Path, tmp_path: Path
) -> None:
    session, options, notes = open_model("unet"), RunOptions(batch_size=1), []
    segment_slide(tall_slide, session, tmp_path, dataclasses.replace(options, overlap_px=40))
    with pytest.raises(StopError):
        segment_slide(tall_slide, session, tmp_path, options, on_progress=stop_after(7))
    segment_slide(tall_slide, session, tmp_path, options, on_note=notes.append)
    assert len(notes) == 1
    assert "goes on after" in notes[0]


# in processes of their own

RUN = textwrap.dedent("""
    import sys, time
    from histoseg.job import segment_slide
    from histoseg.options import RunOptions
    from histoseg.session import open_session
    {prepare}
    with open_session(sys.argv[1], provider="cpu") as session:
        report = segment_slide(sys.argv[2], session, sys.argv[3], RunOptions(batch_size=1),
                               on_progress=lambda progress: time.sleep(0.01))
    print(report["resumed_bands"])
""")


def run_process(prepare: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN.format(prepare=prepare), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_run_killed_three_times_ends_with_the_same_bytes(
    models: Path, open_model, tall_slide: Path, tmp_path: Path
) -> None:
    segment_slide(tall_slide, open_model("unet"), tmp_path / "whole", RunOptions(batch_size=1))
    size = 0
    for _ in range(3):
        process = run_process("", models / "unet.onnx", tall_slide, tmp_path / "out")
        journal = find_journal(tmp_path / "out")
        begin = time.monotonic()
        while not (journal.exists() and journal.stat().st_size > size) and process.poll() is None:
            assert time.monotonic() - begin < 60
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        size = journal.stat().st_size
    process = run_process("", models / "unet.onnx", tall_slide, tmp_path / "out")
    said, wrong = process.communicate()
    assert process.returncode == 0, wrong
    assert int(said) > 0
    assert read_files(tmp_path / "out" / "tall") == read_files(tmp_path / "whole" / "tall")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tall"]


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX does")
@pytest.mark.parametrize("limit", [1600, 2000, 4000])
def test_a_disk_without_room_is_told_of_and_the_run_completes_when_there_is(
    models: Path, open_model, tall_slide: Path, tmp_path: Path, limit: int
) -> None:
    """No file may grow beyond the limit: first the journal meets it, later the pyramid or the picture."""
    segment_slide(tall_slide, open_model("unet"), tmp_path / "whole", RunOptions(batch_size=1))
    prepare = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    process = run_process(prepare, models / "unet.onnx", tall_slide, tmp_path / "out")
    _, wrong = process.communicate()
    last = wrong.strip().splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith("histoseg.errors.OutputError:"), wrong
    assert "room" in last or "space" in last
    assert not (tmp_path / "out" / "tall").exists()
    assert [path.name for path in find_journal(tmp_path / "out").parent.iterdir()] == [JOURNAL_NAME]
    report = segment_slide(tall_slide, open_model("unet"), tmp_path / "out", RunOptions(batch_size=1))
    assert report["resumed_bands"] > 0
    assert read_files(tmp_path / "out" / "tall") == read_files(tmp_path / "whole" / "tall")
