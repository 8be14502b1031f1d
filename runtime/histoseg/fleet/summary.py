"""`summary.csv` and `summary.json`: one row for each slide of a run over many, in the order of the slides."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import histoseg
from histoseg.atomic import write_whole
from histoseg.errors import OutputError
from histoseg.fleet.run import Outcome
from histoseg.fleet.sources import SlideSource
from histoseg.fleet.words import explain_enlargement, list_notes, shorten_reason

CSV_NAME, JSON_NAME = "summary.csv", "summary.json"
COLUMNS = ("slide", "folder", "status", "reason", "note", "seconds", "mm2", "tiles", "provider")
STATUSES = ("done", "skipped", "failed", "stopped")
DICE_DIGITS = 4
UNITS_PER_MM2 = 1e6

Row = dict[str, Any]


def build_row(slide: SlideSource, outcome: Outcome | None) -> Row:
    """Return a slide's row.

    Args:
        slide: The slide.
        outcome: How it ended; `None` where the run was stopped before that.

    Returns:
        `slide` and `folder`, seen from the output folder; `status`: done, skipped (it was finished before),
        failed or stopped; `reason` of a failure, in one line; `note`, what a person should know before
        trusting the figures; `seconds`; `mm2` of the slide that the model
        ran on; `tiles` run; `provider`; `class_mm2` and `dice` by class, the background left out, the latter
        empty without a truth, and `None` for a class that is not present. What is not known is `None`.
    """
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"slide": str(slide.path), "folder": slide.name, "status": "stopped", "class_mm2": {}, "dice": {}}
    if outcome is None:
        return row
    if outcome.report is None:
        reason = shorten_reason(outcome.reason or "", slide.path, slide.name)
        return row | {"status": "failed", "reason": reason, "seconds": outcome.seconds}
    return row | _read_report(outcome.report)


def _read_report(report: Mapping[str, Any]) -> Row:
    classes = _leave_background(report, report["classes"])
    scores = _leave_background(report, report["score"]["classes"]) if report.get("score") else []
    notes = [*list_notes(report), explain_enlargement(report)]
    return {
        "status": "skipped" if report.get("skipped") else "done",
        "note": "; ".join(note for note in notes if note) or None,
        "seconds": report["seconds"]["total"],
        "mm2": round(measure_area(report), 6),
        "tiles": report["tiles"]["run"],
        "provider": report["provider"],
        "class_mm2": {each["name"]: round(each["area_mm2"], 6) for each in classes},
        "dice": {each["name"]: _round_dice(each["dice"]) for each in scores},
    }


def _round_dice(dice: float | None) -> float | None:
    return None if dice is None else round(dice, DICE_DIGITS)


def measure_area(report: Mapping[str, Any]) -> float:
    """Return the mm2 that the model ran on: tiles times the grid's step, never more than the slide."""
    tiles = report["tiles"]
    pixels = min(tiles["run"] * tiles["step_px"] ** 2, math.prod(report["size_px"]))
    return float(pixels * report["spacing_um_px"] ** 2 / UNITS_PER_MM2)


def _leave_background(
    report: Mapping[str, Any], classes: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    return [each for each in classes if each["name"] != report["model"]["background"]]


def count_statuses(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many slides are done, skipped, failed and stopped."""
    counts = Counter(row["status"] for row in rows)
    return {status: counts[status] for status in STATUSES}


def write_summary(out: Path, rows: Sequence[Row]) -> Path:
    """Write both files, each whole or not at all, and return the path of `summary.csv`.

    Raises:
        OutputError: They cannot be written.
    """
    document = {"histoseg": histoseg.__version__, **count_statuses(rows), "slides": list(rows)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in ((JSON_NAME, json.dumps(document, indent=2) + "\n"), (CSV_NAME, format_csv(rows))):
            with write_whole(out / name) as part:
                # a file's name may be no text at all
                part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or error}); choose another -o"
        ) from error
    return out / CSV_NAME


def format_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV: `COLUMNS`, then `mm2_<class>` and `dice_<class>`; empty where not known."""
    areas = _list_classes(rows, "class_mm2")
    scores = _list_classes(rows, "dice")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"mm2_{name}" for name in areas), *(f"dice_{name}" for name in scores)])
    for row in rows:
        cells = [row[column] for column in COLUMNS]
        cells += [row["class_mm2"].get(name) for name in areas]
        cells += [row["dice"].get(name) for name in scores]
        writer.writerow(cells)
    return file.getvalue()


def _list_classes(rows: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row[key]))
