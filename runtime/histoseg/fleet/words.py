"""What a fleet says to people: a line for each finished slide, its notes, a table of those that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

# A slide that is enlarged more than this does not look like what any model was trained on.
MOST_ENLARGED = 4


def summarize(report: Mapping[str, Any], folder: Path) -> str:
    """Return the one line that a person reads about a finished slide."""
    name = Path(report["slide"]["path"]).name
    if report.get("skipped"):
        return f"{name}: was finished before, --overwrite runs it again -> {folder}"
    tiles, seconds = report["tiles"], report["seconds"]["total"]
    speed = f"{tiles['run']} of {tiles['total']} tiles on {report['provider']}, {seconds:.1f} s"
    parts = [*_say_areas(report), *_say_dices(report), *list_notes(report), speed]
    return f"{name}: {', '.join(parts)} -> {folder}"


def list_notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of tissue and objects before trusting the figures."""
    tissue, objects = ((report[key] or {}).get("note") for key in ("tissue", "objects"))
    if not tissue and not report["tiles"]["run"]:
        tissue = "no tissue found (--no-tissue runs every tile)"
    return [note for note in (tissue, objects) if note]


def explain_enlargement(report: Mapping[str, Any]) -> str | None:
    """Return a warning where a slide was enlarged far beyond what it holds (`--allow-coarse`)."""
    given, stated = report["options"]["mpp"], report["slide"]["spacing_um_px"]
    own, used = given or max(stated or [0]), report["spacing_um_px"]
    if own <= MOST_ENLARGED * used:
        return None
    return f"enlarged {own / used:.0f}-fold ({own:.4g} to {used:.4g} um/px); the model was not made for this"


def _say_areas(report: Mapping[str, Any]) -> list[str]:
    total = sum(entry["pixels"] for entry in report["classes"])
    whole = "region" if report["options"]["roi"] else "slide"
    return [
        f"{entry['name']} {100 * entry['pixels'] / total:.2f} % of the {whole} ({entry['area_mm2']:.3f} mm2)"
        for entry in report["classes"]
        if entry["name"] != report["model"]["background"]
    ]


def _say_dices(report: Mapping[str, Any]) -> list[str]:
    scores = report["score"]["classes"] if report.get("score") else []
    return [
        f"Dice {entry['name']} " + ("not present" if entry["dice"] is None else f"{entry['dice']:.3f}")
        for entry in scores
        if entry["name"] != report["model"]["background"]
    ]


def format_failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the slides that failed and why; empty where none has."""
    failed = [(Path(row["slide"]).name, row["reason"]) for row in rows if row["status"] == "failed"]
    if not failed:
        return ""
    width = max(len(name) for name, _ in failed)
    head = f"{len(failed)} of {len(rows)} slides failed:"
    return "\n".join([head, *(f"  {name:<{width}}  {reason}" for name, reason in failed)])


def shorten_reason(reason: str, slide: PurePath, name: str) -> str:
    """Return a reason in one line, less the slide that it begins with.

    Args:
        reason: Why the slide failed.
        slide: The slide, as it was given.
        name: Of the folder of its results.
    """
    line = " ".join(reason.split())
    for named in (" ".join(str(slide).split()), slide.name, name, slide.stem):
        if line.startswith(f"{named}: "):
            return line.removeprefix(f"{named}: ")
    return line
