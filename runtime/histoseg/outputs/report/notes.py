"""What a person should know before trusting the figures of a run."""

from __future__ import annotations

from typing import Any


def find_notes(report: dict[str, Any]) -> list[str]:
    """Return the warnings that follow from a run's report."""
    notes = [
        _tissue(report),
        _provider(report),
        _spacing(report),
        _color(report),
        _gap(report),
        _scores(report),
    ]
    notes += [(report.get(key) or {}).get("note") for key in ("tissue", "objects")]
    return [note[0].upper() + note[1:] for note in notes if note]


def _tissue(report: dict[str, Any]) -> str | None:
    if report["tiles"]["run"]:
        return None
    if report["options"].get("roi"):
        return "No tile ran: the region of interest touches none."
    return "No tile ran: no tissue was found (--no-tissue runs every tile)."


def _provider(report: dict[str, Any]) -> str | None:
    placement = report.get("placement") or {}
    provider, total = report["provider"], sum(placement.values())
    elsewhere = total - placement.get(provider, 0)
    return f"{elsewhere} of {total} nodes of the model did not run on {provider}." if elsewhere else None


def _spacing(report: dict[str, Any]) -> str | None:
    given, stated = report["options"].get("mpp"), report["slide"]["spacing_um_px"]
    if given is not None:
        own = f"the slide states {stated[0]:.4g}" if stated else "the slide states none"
        return f"um/px was given as {given:g} (--mpp); {own}."
    used = report["spacing_um_px"]
    if stated and report["options"].get("allow_coarse") and max(stated) > 1.001 * used:
        return f"The slide, at {max(stated):.4g} um/px, was enlarged to the model's {used:.4g} um/px."
    return None


def _color(report: dict[str, Any]) -> str | None:
    slide = report["slide"]
    if slide["color_space"] == "sRGB" and slide["color_profile"] is None:
        return "The model expects sRGB, and the slide has no colour profile: its pixels were taken for sRGB."
    return None


def _gap(report: dict[str, Any]) -> str | None:
    missing = report["slide"].get("gap_px")
    return f"The scan left out {missing:,} pixels, which are blank in the result." if missing else None


def _scores(report: dict[str, Any]) -> str | None:
    background = report["model"]["background"]
    classes = (report.get("score") or {}).get("classes", [])
    absent = [entry["name"] for entry in classes if entry["dice"] is None and entry["name"] != background]
    if not absent:
        return None
    return f"Neither in the truth nor in the result, so without a score: {', '.join(absent)}."
