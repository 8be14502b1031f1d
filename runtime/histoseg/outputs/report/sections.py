"""The sections below the picture: scores, stages, tissue, run and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histoseg.card import card_to_text
from histoseg.outputs.report.charts import (
    describe_thresholds,
    draw_bar,
    draw_key,
    draw_thresholds,
    pick_threshold,
)
from histoseg.outputs.report.markup import Html, isolate, list_facts, name_image, tag
from histoseg.outputs.report.picture import encode_mask
from histoseg.outputs.report.words import say_number, say_score, say_seconds, say_share, say_size

if TYPE_CHECKING:
    from histoseg.arrays import Mask
    from histoseg.card import ModelCard

SCORES = ("dice", "iou", "precision", "recall")
TISSUE_COLOR = "#7a4fa3"
COLORS = {"device": "as stored in the slide", "sRGB": "brought to sRGB"}


def show_section(key: str, title: str, *content: object) -> Html:
    """Return a titled part of the page."""
    return tag(
        "section",
        {"aria-labelledby": key, "class": f"card {key}"},
        tag("h2", {"id": key}, title),
        *content,
    )


def show_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table whose first column names the rows, and whose others hold figures."""
    columns = (
        tag("th", {"scope": "col", "class": "number" if index else None}, text)
        for index, text in enumerate(head)
    )
    body = (
        tag(
            "tr", None, tag("th", {"scope": "row"}, first), *(tag("td", {"class": "number"}, x) for x in rest)
        )
        for first, *rest in rows
    )
    table = tag(
        "table", None, tag("caption", None, caption), tag("thead", None, tag("tr", None, *columns)),
        tag("tbody", None, *body),
    )  # fmt: skip
    return tag("div", {"class": "scroll"}, table)


def show_scores(report: dict[str, Any], card: ModelCard) -> Html | None:
    """Return what the truth says of the result."""
    score = report.get("score")
    if score is None:
        return None
    rows: list[Sequence[object]] = [
        (isolate(entry["name"]), *(say_score(entry[key]) for key in SCORES)) for entry in score["classes"]
    ]
    rows.append(("Mean", say_score(score["mean_dice"]), say_score(score["mean_iou"]), "", ""))
    table = show_table("Scores against the truth", ("Class", "Dice", "IoU", "Precision", "Recall"), rows)
    accuracy = tag("p", {"class": "soft"}, f"Accuracy over all pixels: {say_score(score['accuracy'])}.")
    return show_section(
        "scores", "Agreement with the truth", table, accuracy, _show_curve(report, score, card)
    )


def _show_curve(report: dict[str, Any], score: dict[str, Any], card: ModelCard) -> Html:
    rows: Sequence[Mapping[str, float | None]] = score.get("thresholds") or ()
    if not rows:
        return Html()
    used, name = pick_threshold(report, card.output.threshold), card.class_names[1]
    figures = [
        (f"{row['threshold']:.2f}", *(say_score(row[key]) for key in ("dice", "precision", "recall")))
        for row in rows
    ]
    table = show_table(
        f"Scores of {name} by threshold", ("Threshold", "Dice", "Precision", "Recall"), figures
    )
    return tag(
        "figure",
        None,
        tag(
            "figcaption",
            None,
            "Scores of ",
            isolate(name),
            " by threshold. ",
            describe_thresholds(rows, used),
        ),
        draw_key(),
        draw_thresholds(rows, used, name),
        tag("details", None, tag("summary", None, "The curve as a table"), table),
    )


def show_seconds(report: dict[str, Any]) -> Html:
    """Return how long each stage was busy, as a table with bars."""
    seconds = report["seconds"]
    stages = {name: value for name, value in seconds.items() if name != "total"}
    longest = max([seconds["total"], *stages.values()]) or 1.0
    rows = [
        (name.replace("_", " ").capitalize(), draw_bar(value / longest), say_seconds(value))
        for name, value in [*stages.items(), ("total", seconds["total"])]
    ]
    words = (
        "Stages run at the same time, each in threads of its own: their seconds do not add up to the total."
    )
    return show_section(
        "seconds",
        "Time",
        show_table("Seconds that each stage was busy", ("Stage", "", "Time"), rows),
        tag("p", {"class": "soft"}, words),
    )


def show_tissue(report: dict[str, Any], mask: Mask | None) -> Html | None:
    """Return the tissue mask and what it is made of."""
    tissue = report["tissue"]
    if tissue is None or mask is None:
        return None
    (width, height), data = encode_mask(mask, TISSUE_COLOR)
    picture = tag(
        "img",
        {
            "class": "mask",
            "src": name_image("image/png", data),
            "alt": f"Tissue mask: {say_share(tissue['coverage'], 1)} of the slide",
            "width": width,
            "height": height,
        },
    )
    facts = list_facts(
        (
            ("Inside the mask", say_share(tissue["coverage"], 1)),
            ("Left out as pen or black", say_share(tissue["ink"], 1)),
            ("Margin", f"{say_number(tissue['margin_um'])}\u202fµm"),
            ("Saturation from", f"{tissue['threshold']:.0f} of 255"),
        )
    )
    return show_section("tissue", "Tissue mask", tag("div", {"class": "beside"}, picture, facts))


def show_run(report: dict[str, Any]) -> Html:
    """Return what ran, on what, and how."""
    slide, tiles, options = report["slide"], report["tiles"], report["options"]
    stated = slide["spacing_um_px"]
    facts = (
        ("Slide", isolate(slide["path"])),
        ("Size", f"{say_size(slide['size_px'])} px"),
        ("Slide's um/px", say_size(f"{um:.4g}" for um in stated) if stated else "not stated"),
        ("Run at", f"{report['spacing_um_px']:.4g} um/px, {say_size(report['size_px'])} px"),
        ("Colour", COLORS.get(slide["color_space"], slide["color_space"])),
        ("Colour profile", slide["color_profile"] or "none"),
        ("Tiles", f"{tiles['run']} of {tiles['total']} run, {say_size(tiles['size_px'])} px"),
        ("Step, halo", f"{tiles['step_px']} px, {tiles['halo_px']} px"),
        ("Blend", tiles["blend"]),
        ("Batch", tiles["batch_size"]),
        ("Panels", tiles["panels"]),
        ("Provider", _name_provider(report)),
        ("Truth", isolate(options["truth"]) if options.get("truth") else None),
        ("Region of interest", isolate(options["roi"]) if options.get("roi") else None),
        ("histoseg", report["histoseg"]),
    )
    return show_section("run", "Run", list_facts(facts))


def _name_provider(report: dict[str, Any]) -> str:
    placement = report.get("placement")
    if not placement:
        return str(report["provider"])
    nodes = ", ".join(f"{count} nodes on {name}" for name, count in placement.items())
    return f"{report['provider']} ({nodes})"


def show_model(report: dict[str, Any], card: ModelCard) -> Html:
    """Return the model's card: what matters most, and all of it."""
    parity = _take_number(card.parity.get("label_agreement"))
    dice = card.training.get("dice")  # cards are free in what they say of their training
    dice = _take_number(dice.get("overall") if isinstance(dice, Mapping) else dice)
    facts = (
        ("File", isolate(report["model"]["name"])),
        ("SHA-256", tag("code", None, report["model"]["sha256"])),
        ("Architecture", card.architecture),
        ("Precision", card.precision),
        ("um/px", f"{card.spacing_um_px:g}"),
        ("Classes", ", ".join(card.class_names)),
        ("Parity with its source", None if parity is None else f"{100 * parity:.4g}\u202f% of labels"),
        ("Dice in training", None if dice is None else say_score(dice)),
        ("Made", card.provenance.get("created")),
        ("Intended use", tag("strong", None, card.intended_use)),
    )
    text = tag("pre", {"tabindex": 0, "aria-label": "Model card as JSON"}, card_to_text(card))
    return show_section(
        "model", "Model card", list_facts(facts),
        tag("details", None, tag("summary", None, "The whole card"), text),
    )  # fmt: skip


def _take_number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
