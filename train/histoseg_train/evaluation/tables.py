"""The rows of an evaluation's CSV files, from its document."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from histoseg_train.evaluation.figures import CLASS_FIGURES

Row = Mapping[str, Any]
ALL_SOURCES = "all"


def list_images(document: Row) -> list[Row]:
    """Return one row an image: what is told of the image, and the figures of each class beside each other."""
    return [_flatten(image) for image in document["images"]]


def list_classes(document: Row) -> list[Row]:
    """Return one row a class, of all images together first, then of each source."""
    pooled = {"source": ALL_SOURCES, **document["pooled"]}
    return [
        {"source": group["source"], "images": group["images"], **figures}
        for group in (pooled, *document["sources"])
        for figures in group["classes"]
    ]


def format_csv(rows: Sequence[Row]) -> str:
    """Return rows of the same keys as CSV; what is not defined is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flatten(image: Row) -> Row:
    plain = {key: value for key, value in image.items() if key not in ("classes", "confusion")}
    return plain | {
        f"{key}_{figures['class']}": figures[key] for figures in image["classes"] for key in CLASS_FIGURES
    }
