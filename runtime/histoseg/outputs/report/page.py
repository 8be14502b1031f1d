"""`report.html`: one slide's result as a page in one file, for a browser without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from histoseg.outputs.report.markup import (
    Html,
    build_page,
    isolate,
    join,
    list_facts,
    read_asset,
    tag,
    write_page,
)
from histoseg.outputs.report.notes import find_notes
from histoseg.outputs.report.sections import (
    show_model,
    show_run,
    show_scores,
    show_seconds,
    show_section,
    show_tissue,
)
from histoseg.outputs.report.viewer import encode_layers, show_classes, show_controls, show_viewer
from histoseg.outputs.report.words import say_length, say_score, say_seconds, say_share, say_size

if TYPE_CHECKING:
    from histoseg.arrays import Mask
    from histoseg.card import ModelCard
    from histoseg.outputs.report.picture import Glance


def write_report(
    path: Path, report: dict[str, Any], card: ModelCard, glance: Glance, tissue: Mask | None = None
) -> None:
    """Write a run's page.

    Args:
        path: The file.
        report: What `report.json` holds.
        card: The model's card.
        glance: The slide and what was found, at a size to look at.
        tissue: `(height, width)`: the tissue mask over the whole slide; `None` where the run used none.

    Raises:
        OutputError: The file cannot be written.
    """
    write_page(path, build_report(report, card, glance, tissue))


def build_report(report: dict[str, Any], card: ModelCard, glance: Glance, tissue: Mask | None = None) -> str:
    """Return a run's page; see `write_report`. The same values give the same text."""
    name = PurePath(report["slide"]["path"]).name
    layers = encode_layers(glance, card, tissue)
    width_um, height_um = measure_slide(report)
    panel = tag("div", {"class": "card"}, show_controls(layers), show_classes(report, card, layers))
    side = tag("div", {"class": "side"}, panel, show_tissue(report, tissue) or "")
    hero = tag("section", {"class": "hero", "aria-label": "Segmentation"},
               show_viewer(layers, name, width_um), side)  # fmt: skip
    sections = (
        show_scores(report, card),
        show_seconds(report),
        show_model(report, card),
        show_run(report),
    )
    body = join(
        (
            show_header(name, card.intended_use),
            tag("main", None, _show_notes(report), _show_summary(report, width_um, height_um), hero,
                tag("div", {"class": "sections"}, *filter(None, sections))),
            tag("footer", None, f"histoseg {report['histoseg']}. {card.intended_use}"),
        )
    )  # fmt: skip
    return build_page(
        f"{name} \u2013 histoseg", body, style=read_asset("page.css"), script=read_asset("page.js")
    )


def measure_slide(report: dict[str, Any]) -> tuple[float, float]:
    """Return a slide's width and height in um; of one without um/px, by what the run took it for."""
    given, slide = report["options"].get("mpp"), report["slide"]
    if given is None and slide["spacing_um_px"]:
        width, height = (px * um for px, um in zip(slide["size_px"], slide["spacing_um_px"], strict=True))
        return width, height
    if given is not None:
        return slide["size_px"][0] * given, slide["size_px"][1] * given
    return report["size_px"][0] * report["spacing_um_px"], report["size_px"][1] * report["spacing_um_px"]


def show_header(name: str, intended_use: str) -> Html:
    """Return the head of a page: the name, and that it is for research."""
    return tag(
        "header",
        None,
        tag("p", {"class": "brand"}, "histoseg"),
        tag("h1", None, isolate(name)),
        tag("p", {"class": "badge", "title": intended_use}, "Research use only"),
    )


def _show_notes(report: dict[str, Any]) -> Html:
    notes = find_notes(report)
    if not notes:
        return Html()
    return show_section("notes", "Warnings", tag("ul", None, *(tag("li", None, note) for note in notes)))


def _show_summary(report: dict[str, Any], width_um: float, height_um: float) -> Html:
    """Return the few figures that a person looks for first."""
    tissue, tiles = report["tissue"], report["tiles"]
    facts = (
        ("Slide", say_size((say_length(width_um), say_length(height_um)))),
        ("Tissue", say_share(tissue["coverage"], 1) if tissue else None),
        *_iter_dice(report),
        ("Model", isolate(report["model"]["name"])),
        ("Tiles", f"{tiles['run']} of {tiles['total']}"),
        ("Provider", report["provider"]),
        ("Time", say_seconds(report["seconds"]["total"])),
    )
    return list_facts(facts, "summary")


def _iter_dice(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the Dice of the one class that is no background, or the mean of many."""
    score = report.get("score")
    if score is None:
        return
    found = [entry for entry in score["classes"] if entry["name"] != report["model"]["background"]]
    if len(found) == 1:
        yield f"Dice, {found[0]['name']}", say_score(found[0]["dice"])
    else:
        yield "Mean Dice", say_score(score["mean_dice"])
