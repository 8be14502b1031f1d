"""What an export found: a document for machines, and where the files came from."""

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
from histoseg.atomic import write_whole
from histoseg.card import ModelCard, Precision
from histoseg.errors import OutputError
from histoseg.jsonclass import to_json
from histoseg_export.convert import GREY_WEIGHTS, OPSET
from histoseg_export.describe import Description
from histoseg_export.probe import Measurement

if TYPE_CHECKING:
    from histoseg_export.parity import Parity
    from histoseg_export.variants import Variant


@dataclass(frozen=True)
class ExportResult:
    """What an export made, and what it found."""

    target: Path
    files: dict[Precision, Path]
    """What was asked for."""
    variants: tuple[Variant, ...]
    """fp32 first, which is proven whether or not it was asked for."""
    measured: Measurement | None
    """`None` where fp32 failed its gate."""
    notes: tuple[str, ...]
    """What was assumed and what to look out for, in sentences."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every gate held."""
        return all(variant.passed for variant in self.variants)

    @property
    def parities(self) -> tuple[Parity, ...]:
        """Return the proof of each variant."""
        return tuple(variant.parity for variant in self.variants if variant.parity is not None)

    @property
    def card(self) -> ModelCard:
        """Return the card of the fp32 model."""
        return self.variants[0].card


def report_path(target: Path) -> Path:
    """Return `model.report.json` for `model.onnx`."""
    return target.with_suffix(".report.json")


def write_report(result: ExportResult) -> None:
    """Write the report beside the model, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    path = report_path(result.target)
    document = {
        "passed": result.passed,
        "models": [_describe_variant(variant, result) for variant in result.variants],
        "measured": None if result.measured is None else asdict(result.measured),
        "notes": list(result.notes),
        "seconds": round(result.seconds, 1),
    }
    try:
        with write_whole(path) as part:
            part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _describe_variant(variant: Variant, result: ExportResult) -> dict[str, Any]:
    file = result.files.get(variant.precision)
    return {
        "precision": variant.precision,
        "file": file.name if file is not None and result.passed else None,
        "parity": None if variant.parity is None else variant.parity.to_json(),
        "operators": variant.operators,
        "quantization": None if variant.quantization is None else variant.quantization.to_json(),
        "card": to_json(variant.card),
    }


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
