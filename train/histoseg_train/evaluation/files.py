"""The folder of an evaluation: JSON, CSV and a contact sheet with the same figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoseg.folder import make_folder
from histoseg_train.evaluation.tables import format_csv, list_classes, list_images
from histoseg_train.images import encode_png

if TYPE_CHECKING:
    from histoseg.arrays import Pixels

REPORT_NAME, SHEET_NAME = "evaluation.json", "sheet.png"
IMAGES_NAME, CLASSES_NAME, THRESHOLDS_NAME = "images.csv", "classes.csv", "thresholds.csv"
NAMES = (REPORT_NAME, IMAGES_NAME, CLASSES_NAME, THRESHOLDS_NAME, SHEET_NAME)


@contextmanager
def make_evaluation_folder(final: Path) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block succeeds; see `histoseg.folder.make_folder`."""
    with make_folder(final, NAMES, report=REPORT_NAME) as folder:
        yield folder


def write_evaluation(folder: Path, document: dict[str, Any], sheet: Pixels | None = None) -> None:
    """Write an evaluation's files.

    Args:
        folder: An empty folder.
        document: What `histoseg_train.evaluation.figures.describe_evaluation` returned.
        sheet: RGB `(h, w, 3)`, or nothing.
    """
    (folder / REPORT_NAME).write_text(format_json(document), encoding="utf-8")
    (folder / IMAGES_NAME).write_text(format_csv(list_images(document)), encoding="utf-8")
    (folder / CLASSES_NAME).write_text(format_csv(list_classes(document)), encoding="utf-8")
    if document["thresholds"]:
        (folder / THRESHOLDS_NAME).write_text(format_csv(document["thresholds"]), encoding="utf-8")
    if sheet is not None:
        (folder / SHEET_NAME).write_bytes(encode_png(sheet))


def format_json(document: dict[str, Any]) -> str:
    """Return the document as indented JSON."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
