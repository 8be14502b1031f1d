"""What an export found: a document for machines, a table for people, and where the file came from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

import histoseg
from histoseg.card import ModelCard
from histoseg.errors import OutputError
from histoseg.jsonclass import to_json
from histoseg_export.convert import GREY_WEIGHTS, OPSET
from histoseg_export.describe import Description
from histoseg_export.probe import Measurement
from histoseg_export.prove import MAX_ABS, MIN_LABEL_AGREEMENT, Parity

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ExportResult:
    """A proven export."""

    path: Path
    card: ModelCard
    parity: Parity
    measured: Measurement
    operators: dict[str, int]
    """Nodes of the graph, by kind."""
    notes: tuple[str, ...]
    """What was assumed and what to look out for, in sentences."""
    seconds: float


def report_path(target: Path) -> Path:
    """Return `model.report.json` for `model.onnx`."""
    return target.with_suffix(".report.json")


def write_report(result: ExportResult) -> None:
    """Write the report beside the model, whole or not at all."""
    path = report_path(result.path)
    document = {
        "model": result.path.name,
        "parity": result.parity.to_json(),
        "measured": asdict(result.measured),
        "operators": result.operators,
        "notes": list(result.notes),
        "seconds": round(result.seconds, 1),
        "card": to_json(result.card),
    }
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)


def build_table(parity: Parity) -> Table:
    """Return the parity figures beside what the gate asks for."""
    from rich.table import Table

    table = Table(title=f"Keras against ONNX, {parity.tiles} tiles of {parity.source}", title_justify="left")
    for heading in ("figure", "found", "gate"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    found = f"{parity.label_agreement:.4%} ({parity.differing_pixels} px differ)"
    table.add_row("labels that agree", found, f">= {MIN_LABEL_AGREEMENT:.2%}")
    table.add_row("max |dp|", f"{parity.max_abs:.2g}", f"<= {MAX_ABS:.0e}")
    table.add_row("mean |dp|", f"{parity.mean_abs:.2g}", "")
    for entry in parity.classes:
        table.add_row(f"Dice {entry.name}", "not present" if entry.dice is None else f"{entry.dice:.6f}", "")
    return table


def hash_source(source: Path) -> str:
    """Return the SHA-256 of a file; of a folder, that of its files' names and contents in order."""
    if source.is_file():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for path in sorted(item for item in source.rglob("*") if item.is_file()):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def describe_provenance(source: Path, description: Description) -> dict[str, Any]:
    """Return where an export came from; `SOURCE_DATE_EPOCH` fixes its date."""
    import keras
    import tensorflow as tf
    import tf2onnx

    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    created = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    versions = {
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "tf2onnx": tf2onnx.__version__,
        "onnx": onnx.__version__,
        "histoseg": histoseg.__version__,
    }
    return {
        "source_sha256": hash_source(source),
        "source_name": source.name,
        "versions": versions,
        "created": created.isoformat(timespec="seconds"),
        "normalization": description.normalization,
        "grey": GREY_WEIGHTS.tolist() if description.grey else None,
        "clipped": description.clip,
        "opset": OPSET,
    }
