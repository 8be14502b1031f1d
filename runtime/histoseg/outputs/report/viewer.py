"""The slide's picture with its layers, and the table of classes that shows and hides them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histoseg.outputs.report.charts import draw_swatch
from histoseg.outputs.report.markup import Html, isolate, join, name_image, tag
from histoseg.outputs.report.picture import encode_classes, encode_outside, encode_slide
from histoseg.outputs.report.words import say_number, say_share

if TYPE_CHECKING:
    from histoseg.arrays import Mask
    from histoseg.card import ModelCard
    from histoseg.outputs.report.picture import Glance

OUTSIDE_COLOR = "#14181f"
OPACITY_PERCENT = 60
HINT = "Zoom with + and -, move with the arrow keys, 0 shows all. Or drag, and turn the wheel with Ctrl held."
BUTTONS = (("zoom-in", "+", "Zoom in"), ("zoom-out", "\u2212", "Zoom out"), ("zoom-fit", "Fit", "Show all"))


@dataclass(frozen=True)
class Layers:
    """What a viewer shows, encoded."""

    slide: bytes
    """JPEG."""
    classes: dict[int, bytes]
    """PNG by class index."""
    outside: bytes | None
    """PNG of what lies outside the tissue mask."""
    size: tuple[int, int]
    """Width and height of each."""


def encode_layers(glance: Glance, card: ModelCard, tissue: Mask | None) -> Layers:
    """Encode a run's picture and layers."""
    outside = None if tissue is None else encode_outside(tissue, glance.size, OUTSIDE_COLOR)
    classes = encode_classes(glance, card.class_colors, card.background_index)
    return Layers(encode_slide(glance), classes, outside, glance.size)


def show_viewer(layers: Layers, name: str, width_um: float) -> Html:
    """Return the picture with its layers and buttons; `width_um` is that of the slide."""
    stage = tag("div", {"id": "stage"}, *_iter_images(layers, name))
    scale = tag(
        "div",
        {"id": "scale", "hidden": "", "data-um": f"{width_um / layers.size[0]:.6g}"},
        tag("span", {"id": "scale-words"}),
        tag("span", {"id": "scale-bar"}),
    )
    view = tag(
        "div",
        {
            "id": "view",
            "role": "group",
            "tabindex": 0,
            "aria-label": "Picture of the slide",
            "aria-describedby": "hint",
        },
        stage,
    )
    return tag("div", {"class": "viewer"}, view, scale, _show_buttons())


def show_classes(report: dict[str, Any], card: ModelCard, layers: Layers) -> Html:
    """Return the legend: each class with its switch, colour, area and share."""
    whole = "region" if report["options"].get("roi") else "slide"
    head = (
        ("Class", None),
        ("mm²", "number"),
        (f"of {whole}", "number"),
        *((("Objects", "number"),) if report.get("objects") else ()),
    )
    columns = (tag("th", {"scope": "col", "class": kind}, text) for text, kind in head)
    table = tag(
        "table",
        {"class": "classes"},
        tag("caption", None, "Area of each class"),
        tag("thead", None, tag("tr", None, *columns)),
        tag("tbody", None, *_iter_rows(report, card, layers)),
    )
    return tag("div", {"class": "scroll"}, table)


def show_controls(layers: Layers) -> Html:
    """Return the slider and the switch of the tissue mask; hidden until the script runs."""
    slider = {
        "id": "opacity", "type": "range", "min": 0, "max": 100, "value": OPACITY_PERCENT,
        "autocomplete": "off",
    }  # fmt: skip
    label = tag("label", {"for": "opacity"}, "Opacity of the segmentation")
    value = tag("output", {"id": "opacity-words", "for": "opacity"}, f"{OPACITY_PERCENT}\u202f%")
    parts = [tag("div", {"class": "slider"}, label, value, tag("input", slider))]
    if layers.outside is not None:
        box = tag("input", {"type": "checkbox", "data-layer": "outside", "autocomplete": "off"})
        parts.append(tag("label", {"class": "switch"}, box, "Dim outside the tissue mask"))
    parts.append(tag("p", {"id": "hint", "class": "soft"}, HINT))
    return tag("div", {"class": "controls", "hidden": ""}, *parts)


def _iter_images(layers: Layers, name: str) -> Iterator[Html]:
    width, height = layers.size
    slide = {"id": "slide", "src": name_image("image/jpeg", layers.slide), "alt": f"The slide {name}"}
    yield tag("img", {**slide, "width": width, "height": height, "draggable": "false"})
    if layers.outside is not None:
        yield _show_layer("outside", layers.outside, hidden=True)
    classes = (_show_layer(f"class-{index}", data, hidden=False) for index, data in layers.classes.items())
    yield tag("div", {"id": "layers"}, *classes)


def _show_layer(key: str, png: bytes, *, hidden: bool) -> Html:
    source = name_image("image/png", png)
    return tag(
        "img", {"id": key, "class": "layer", "src": source, "alt": "", "hidden": "" if hidden else None}
    )


def _show_buttons() -> Html:
    buttons = (
        tag("button", {"id": key, "type": "button", "aria-label": words, "title": words}, text)
        for key, text, words in BUTTONS
    )
    words = tag("output", {"id": "zoom-words", "aria-live": "polite"}, "100\u202f%")
    return tag("div", {"class": "buttons", "hidden": ""}, *buttons, words)


def _iter_rows(report: dict[str, Any], card: ModelCard, layers: Layers) -> Iterator[Html]:
    total = sum(entry["pixels"] for entry in report["classes"])
    counts = {entry["name"]: entry["count"] for entry in (report.get("objects") or {}).get("classes", [])}
    for index, (entry, color) in enumerate(zip(report["classes"], card.class_colors, strict=True)):
        figures = [say_number(entry["area_mm2"]), say_share(entry["pixels"], total)]
        if counts:
            figures.append(f"{counts[entry['name']]:,}" if entry["name"] in counts else "\u2013")
        cells = (tag("td", {"class": "number"}, figure) for figure in figures)
        yield tag("tr", None, tag("th", {"scope": "row"}, _name_class(index, entry["name"], color, layers)),
                  *cells)  # fmt: skip


def _name_class(index: int, name: str, color: str, layers: Layers) -> Html:
    """Return a class's colour and name; with a switch where there is something to show."""
    label = join((draw_swatch(color), isolate(name)))
    if index not in layers.classes:
        return tag("span", {"class": "class"}, tag("span", {"class": "no-switch"}), label)
    box = tag("input", {"type": "checkbox", "checked": "", "data-layer": f"class-{index}", "hidden": "",
                        "autocomplete": "off"})  # fmt: skip
    return tag("label", {"class": "class"}, box, label)
