"""What a fleet says to people: a line for each finished slide, a table of those that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def summarize(report: Mapping[str, Any], folder: Path) -> str:
    """Return the one line that a person reads about a finished slide."""
    name = Path(report["slide"]["path"]).name
    if report.get("skipped"):
        return f"{name}: was finished before, --overwrite runs it again -> {folder}"
    tiles, seconds = report["tiles"], report["seconds"]["total"]
    parts = [*_say_areas(report), *_say_dices(report)]
    if note := (report["tissue"] or {}).get("note"):
        parts.append(note)
    elif not tiles["run"]:
        parts.append("no tissue found (--no-tissue runs every tile)")
    if note := (report["objects"] or {}).get("note"):
        parts.append(note)
    parts.append(f"{tiles['run']} of {tiles['total']} tiles on {report['provider']}, {seconds:.1f} s")
    return f"{name}: {', '.join(parts)} -> {folder}"


def _say_areas(report: Mapping[str, Any]) -> list[str]:
    total = sum(entry["pixels"] for entry in report["classes"])
    whole = "region" if report["options"]["roi"] else "slide"
    return [
        f"{entry['name']} {100 * entry['pixels'] / total:.2f} % of the {whole} ({entry['area_mm2']:.3f} mm2)"
        for entry in report["classes"]
        if entry["name"] != report["model"]["background"]
    ]


def _say_dices(report: Mapping[str, Any]) -> list[str]:
    scores = report["score"]["classes"] if "score" in report else []
    return [
        f"Dice {entry['name']} " + ("not present" if entry["dice"] is None else f"{entry['dice']:.3f}")
        for entry in scores
        if entry["name"] != report["model"]["background"]
    ]


def format_failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the slides that failed and why; empty where none has."""
    failed = [(Path(row["slide"]).name, _shorten(row)) for row in rows if row["status"] == "failed"]
    if not failed:
        return ""
    width = max(len(name) for name, _ in failed)
    head = f"{len(failed)} of {len(rows)} slides failed:"
    return "\n".join([head, *(f"  {name:<{width}}  {reason}" for name, reason in failed)])


def _shorten(row: Mapping[str, Any]) -> str:
    """Return a reason without the slide that it begins with."""
    return str(row["reason"]).removeprefix(f"{row['slide']}: ")
