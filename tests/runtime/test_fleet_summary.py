from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import OutputError
from histoseg.fleet.run import Order, Outcome, run_slide
from histoseg.fleet.sources import SlideSource
from histoseg.fleet.summary import COLUMNS, build_row, format_csv, write_summary
from histoseg.fleet.words import explain_enlargement, format_failures, shorten_reason, summarize
from histoseg.options import RunOptions

SLIDE = SlideSource(Path("in/a.svs"), "a")


@pytest.fixture(scope="module")
def ended(open_model: Callable, small_slide: Path, tmp_path_factory: pytest.TempPathFactory):
    """A slide that ran, how it ended, and its events."""
    events: list[dict] = []
    slide = SlideSource(small_slide, "small", small_slide.with_name("truth.png"))
    order = Order(tmp_path_factory.mktemp("out"), RunOptions(tissue=False), tell_seconds=0)
    return slide, run_slide(slide, open_model("threshold"), order, events.append), events


def test_a_row_says_what_the_report_does(ended) -> None:
    slide, outcome, _ = ended
    row, report = build_row(slide, outcome), outcome.report
    assert (row["status"], row["folder"], row["reason"]) == ("done", "small", None)
    assert row["seconds"] == report["seconds"]["total"]
    assert row["dice"] == {"nucleus": round(report["score"]["classes"][1]["dice"], 4)}
    assert row["class_mm2"] == {"nucleus": pytest.approx(report["classes"][1]["area_mm2"], abs=1e-6)}


def test_the_area_is_that_of_the_last_progress(ended) -> None:
    slide, outcome, events = ended
    tiles = [event for event in events if event["event"] == "tiles"]
    assert tiles[-1]["done"] == tiles[-1]["known"] == outcome.report["tiles"]["run"]
    assert build_row(slide, outcome)["mm2"] == pytest.approx(tiles[-1]["mm2"], abs=1e-6)
    assert tiles[-1]["mm2"] == pytest.approx(700 * 620 * 0.25 / 1e6)


def test_a_skipped_slide_keeps_the_row_of_its_report(ended) -> None:
    slide, outcome, _ = ended
    skipped = build_row(slide, Outcome({**outcome.report, "skipped": True}))
    assert skipped == {**build_row(slide, outcome), "status": "skipped"}


REASONS = st.text(st.characters(codec="utf-8"), min_size=1)


@given(reasons=st.lists(st.none() | REASONS, min_size=1))
def test_csv_holds_one_row_a_slide_whatever_the_reasons(reasons: list[str | None]) -> None:
    rows = [build_row(SLIDE, Outcome(reason=reason) if reason else None) for reason in reasons]
    read = list(csv.DictReader(io.StringIO(format_csv(rows))))
    assert [row["status"] for row in read] == ["failed" if reason else "stopped" for reason in reasons]
    assert [row["reason"] for row in read] == [
        shorten_reason(reason or "", SLIDE.path, "a") for reason in reasons
    ]
    assert tuple(read[0]) == COLUMNS


@given(reason=st.text(), slide=st.sampled_from(["in/a b.svs", "a.svs", "in/DCM_0.dcm"]))
def test_a_reason_is_one_line_that_does_not_begin_with_the_slide(reason: str, slide: str) -> None:
    path, line = PurePath(slide), " ".join(reason.split())
    for named in (slide, path.name, path.stem, "case"):
        assert shorten_reason(f"{named}: torn{reason}", path, "case") == " ".join(f"torn{reason}".split())
    if not line.startswith(("in/", "a", "DCM_0", "case")):
        assert shorten_reason(reason, path, "case") == line


def test_what_a_person_should_know_is_a_note_of_the_row(ended) -> None:
    slide, outcome, _ = ended
    assert build_row(slide, outcome)["note"] is None
    nothing = {**outcome.report, "tiles": {**outcome.report["tiles"], "run": 0}}
    marked = {**outcome.report, "tissue": {"note": "pen"}, "objects": {"note": "many"}}
    for report, note in ((nothing, "no tissue found (--no-tissue runs every tile)"), (marked, "pen; many")):
        assert build_row(slide, Outcome(report))["note"] == note
        assert note.replace("; ", ", ") in summarize(report, Path("out"))


@given(own=st.floats(0.01, 100), used=st.floats(0.01, 100))
def test_only_more_than_fourfold_enlargement_is_noted(own: float, used: float) -> None:
    slide = {"spacing_um_px": [own / 2, own]}
    report = {"options": {"mpp": None}, "slide": slide, "spacing_um_px": used}
    note = explain_enlargement(report)
    assert (note is not None) == (own > 4 * used)
    assert explain_enlargement(report | {"options": {"mpp": used}}) is None
    assert explain_enlargement(report | {"slide": {"spacing_um_px": None}}) is None


def test_both_files_say_the_same(ended, tmp_path: Path) -> None:
    slide, outcome, _ = ended
    rows = [build_row(SLIDE, Outcome(reason="in/a.svs: torn", seconds=0.5)), build_row(slide, outcome)]
    path = write_summary(tmp_path / "new" / "out", rows)
    document = json.loads(path.with_name("summary.json").read_text())
    assert document["slides"] == rows
    counts = {status: document[status] for status in ("done", "skipped", "failed", "stopped")}
    assert counts == {"done": 1, "skipped": 0, "failed": 1, "stopped": 0}
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["seconds"] for row in read] == ["0.5", str(rows[1]["seconds"])]
    assert read[0]["dice_nucleus"] == ""
    assert float(read[1]["dice_nucleus"]) == rows[1]["dice"]["nucleus"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["summary.csv", "summary.json"]


def test_a_name_that_is_no_text_is_written(tmp_path: Path) -> None:
    rows = [build_row(SlideSource(Path("\udcff.svs"), "\udcff"), Outcome(reason="\udcff.svs: torn"))]
    assert r"\udcff.svs" in write_summary(tmp_path, rows).read_text("utf-8")


def test_a_summary_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_summary(tmp_path / "file", [])


def test_the_table_names_each_failure_once() -> None:
    rows = [build_row(SLIDE, Outcome(reason="in/a.svs: torn")), build_row(SLIDE, None)]
    assert format_failures(rows) == "1 of 2 slides failed:\n  a.svs  torn"
    assert format_failures(rows[1:]) == ""
