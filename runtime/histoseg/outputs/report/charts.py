"""Charts as SVG: shapes without inline styles, coloured by the page's style for light, dark and print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from histoseg.outputs.report.markup import Html, tag
from histoseg.outputs.report.words import say_score

# the plot inside the picture: left, top, width and height
WIDTH, HEIGHT = 440, 250
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 40, 12, 388, 196
CURVES = ("dice", "precision", "recall")


def draw_swatch(color: str) -> Html:
    """Return a square of a class's colour."""
    return tag(
        "svg",
        {"class": "swatch", "viewBox": "0 0 12 12", "aria-hidden": "true"},
        tag("rect", {"x": 0.5, "y": 0.5, "width": 11, "height": 11, "rx": 2, "fill": color}),
    )


def draw_bar(share: float) -> Html:
    """Return a bar that fills a share, 0 to 1, of its width; the figure stands beside it."""
    return tag(
        "svg",
        {"class": "bar", "viewBox": "0 0 100 8", "preserveAspectRatio": "none", "aria-hidden": "true"},
        tag("rect", {"class": "bar-track", "width": 100, "height": 8}),
        tag("rect", {"class": "bar-fill", "width": f"{100 * min(1.0, max(0.0, share)):.2f}", "height": 8}),
    )


def draw_thresholds(rows: Sequence[Mapping[str, float | None]], used: float, name: str) -> Html:
    """Return Dice, precision and recall of a class over the threshold, and the threshold of this run."""
    title = tag("title", {"id": "curve-title"}, f"Scores of {name} by threshold")
    words = tag("desc", {"id": "curve-desc"}, describe_thresholds(rows, used))
    floor, x = _find_floor(rows), _place_x(used)
    mark = tag("line", {"class": "mark", "x1": x, "x2": x, "y1": TOP, "y2": TOP + PLOT_HEIGHT})
    curves = (_draw_curve(rows, key, floor) for key in CURVES)
    attributes = {
        "class": "chart",
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "role": "img",
        "aria-labelledby": "curve-title curve-desc",
    }
    return tag("svg", attributes, title, words, _draw_axes(floor), mark, *curves)


def describe_thresholds(rows: Sequence[Mapping[str, float | None]], used: float) -> str:
    """Return in one sentence what the curve shows."""
    known = [row for row in rows if row["dice"] is not None]
    if not known:
        return "The class is neither in the truth nor, at any threshold, in the result."
    best = max(known, key=lambda row: row["dice"] or 0.0)
    return f"Dice is best, {say_score(best['dice'])}, at {best['threshold']:.2f}; this run used {used:.2f}."


def draw_key() -> Html:
    """Return what the lines of the chart mean."""
    items = (
        tag(
            "li",
            None,
            tag(
                "svg",
                {"class": "key", "viewBox": "0 0 28 8", "aria-hidden": "true"},
                tag("line", {"class": f"curve {key}", "x1": 1, "x2": 27, "y1": 4, "y2": 4}),
            ),
            word,
        )
        for key, word in (*((key, key.capitalize()) for key in CURVES), ("mark", "Threshold of this run"))
    )
    return tag("ul", {"class": "keys"}, *items)


def _find_floor(rows: Iterable[Mapping[str, float | None]]) -> float:
    """Return the score at the foot of the plot: a multiple of 0.2 below every curve."""
    scores = (row[key] for row in rows for key in CURVES)
    lowest = min((score for score in scores if score is not None), default=0.0)
    return min(4, int(5 * lowest)) / 5


def _draw_axes(floor: float) -> Html:
    return tag("g", {"class": "axes", "aria-hidden": "true"}, *_iter_axes(floor))


def _iter_axes(floor: float) -> Iterator[Html]:
    count = 4 if floor >= 0.6 else round((1 - floor) / 0.2)
    for index in range(count + 1):
        score = floor + (1 - floor) * index / count
        y = _place_y(score, floor)
        yield tag("line", {"x1": LEFT, "x2": LEFT + PLOT_WIDTH, "y1": y, "y2": y})
        yield tag("text", {"x": LEFT - 8, "y": y + 4, "text-anchor": "end"}, f"{score:.2f}")
    for fifth in range(6):
        below = {"x": _place_x(fifth / 5), "y": TOP + PLOT_HEIGHT + 17, "text-anchor": "middle"}
        yield tag("text", below, f"{fifth / 5:.1f}")
    middle = {"x": LEFT + PLOT_WIDTH / 2, "y": HEIGHT - 6, "text-anchor": "middle"}
    yield tag("text", middle, "Threshold")


def _draw_curve(rows: Iterable[Mapping[str, float | None]], key: str, floor: float) -> Html:
    """Draw a line that breaks where there is no score."""
    pieces: list[list[str]] = [[]]
    for row in rows:
        threshold, score = row["threshold"], row[key]
        if score is None or threshold is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{_place_x(threshold)},{_place_y(score, floor)}")
    lines = (tag("polyline", {"points": " ".join(piece)}) for piece in pieces if piece)
    return tag("g", {"class": f"curve {key}"}, *lines)


def _place_x(threshold: float) -> float:
    return round(LEFT + threshold * PLOT_WIDTH, 1)


def _place_y(score: float, floor: float) -> float:
    return round(TOP + (1 - score) / (1 - floor) * PLOT_HEIGHT, 1)


def pick_threshold(report: Mapping[str, Any], of_card: float | None) -> float:
    """Return the probability of the second class from which a pixel belonged to it in a run."""
    chosen = report["options"].get("threshold")
    found = of_card if chosen is None else chosen
    return 0.5 if found is None else float(found)
