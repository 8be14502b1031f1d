"""The header of a DICOM Segmentation: highdicom makes it, of one empty tile; the pixels come from a spool."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import histoseg
from histoseg.colors import parse_color
from histoseg.outputs.dicomseg.codes import Concept, choose_concepts
from histoseg.outputs.dicomseg.frames import TILE_PX
from histoseg.outputs.dicomseg.source import Placement, explain_damage, place_labels, place_source

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

    from histoseg.card import ModelCard
    from histoseg.scale import Scale

# What every DICOM file states, if only as empty; some slides leave it out.
PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
USE = "Research use only; not for diagnosis"
# Stands where a UID will, until the content that it is derived from is complete.
UNKNOWN_UID = "2.25.0"
NO_DATE, NO_TIME = "19700101", "000000"
LONG_STRING = 64
NOMINAL_DEPTH_MM = 0.001


@dataclass(frozen=True)
class Maker:
    """The model that made the labels."""

    name: str
    sha256: str


def build_header(source: FileDataset, scale: Scale, card: ModelCard, maker: Maker) -> Dataset:
    """Return the header, complete but for its UIDs; see `stamp_header`.

    Args:
        source: Header of the slide's level 0. It is changed.
        scale: How labels lie over the slide.
        card: Classes and their colours.
        maker: Who made the labels.

    Raises:
        SlideError: The slide's header holds what DICOM does not allow.
    """
    with explain_damage(Path(str(source.filename))):
        place = place_labels(place_source(source), scale)
        _complete(source)
        header = _build_empty(source, place, _describe_segments(card, maker))
        width, height = scale.m_size
        header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = width, height
        header.NumberOfFrames = -(-width // TILE_PX) * -(-height // TILE_PX) * len(header.SegmentSequence)
        del header.PixelData
        _forget_clock(header)
        stamp_header(header, None)
        encode_header(header)  # what cannot be written is known before the slide is segmented
    return header


def stamp_header(header: Dataset, content: str | None) -> None:
    """Give the header its UIDs, derived from `content`, or the one that stands for unknown ones.

    A UID made of a UUID: DICOM PS3.5 B.2.
    """
    header.SOPInstanceUID = _derive_uid(content, "instance")
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.SeriesInstanceUID = _derive_uid(content, "series")
    header.DimensionOrganizationSequence[0].DimensionOrganizationUID = _derive_uid(content, "tiles")


def encode_header(header: Dataset) -> bytes:
    """Return the header as the beginning of a DICOM file."""
    from pydicom import dcmwrite

    buffer = io.BytesIO()
    dcmwrite(buffer, header, enforce_file_format=True)
    return buffer.getvalue()


def _derive_uid(content: str | None, role: str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{content}/{role}').int}" if content else UNKNOWN_UID


def _complete(source: Dataset) -> None:
    """Let highdicom find what it looks for: elements that may not be left out, and a slide of one tile."""
    for name in PATIENT_AND_STUDY:
        if name not in source:
            setattr(source, name, None)
    if not source.get("TotalPixelMatrixOriginSequence"):
        source.TotalPixelMatrixOriginSequence = [_make_origin()]
    source.TotalPixelMatrixColumns = source.TotalPixelMatrixRows = TILE_PX


def _make_origin() -> Dataset:
    from pydicom import Dataset

    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    return origin


def _build_empty(source: Dataset, place: Placement, segments: list[Any]) -> Dataset:
    import highdicom

    column_mm, row_mm = place.spacing
    return highdicom.seg.Segmentation(
        [source],
        np.zeros((TILE_PX, TILE_PX), np.uint8),
        "BINARY",
        segments,
        series_instance_uid=UNKNOWN_UID,
        series_number=_next_series(source),
        sop_instance_uid=UNKNOWN_UID,
        instance_number=1,
        manufacturer="histoseg",
        manufacturer_model_name="histoseg",
        software_versions=histoseg.__version__,
        device_serial_number="none",
        content_description=USE,
        content_label="HISTOSEG",
        series_description=f"Segmentation. {USE}",
        pixel_measures=highdicom.PixelMeasuresSequence((row_mm, column_mm), _find_depth(source)),
        plane_orientation=highdicom.PlaneOrientationSequence("SLIDE", place.orientation),
        plane_positions=[highdicom.PlanePositionSequence("SLIDE", place.origin, (1, 1))],
        omit_empty_frames=False,
        dimension_organization_type="TILED_FULL",
        tile_pixel_array=True,
        tile_size=(TILE_PX, TILE_PX),
        specific_character_set="ISO_IR 192",
        content_date=source.get("ContentDate") or source.get("StudyDate") or NO_DATE,
        content_time=source.get("ContentTime") or NO_TIME,
    )


def _forget_clock(header: Dataset) -> None:
    """Drop the times of this run, which are optional: the same labels would differ in them on every run."""
    del header.InstanceCreationDate, header.InstanceCreationTime
    # the last is highdicom's own, those before it are of the slide's making
    header.ContributingEquipmentSequence[-1].pop("ContributionDateTime", None)


def _find_depth(source: Dataset) -> float:
    """Return how deep the slide's pixels are, in mm, which readers of segmentations insist on."""
    stated = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].get("SliceThickness")
    return float(stated or float(source.get("ImagedVolumeDepth") or 0) / 1000 or NOMINAL_DEPTH_MM)


def _next_series(source: Dataset) -> int:
    """Return a series number that differs from the slide's; numbers need not be unique."""
    return int(source.get("SeriesNumber") or 0) % 1_000_000 + 1000


def _describe_segments(card: ModelCard, maker: Maker) -> list[Any]:
    """Return a description of each class but the background, numbered from 1."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_shorten(maker.name),
        family=codes.cid7162.ArtificialIntelligence,
        version=histoseg.__version__,
        source="histoseg",
        parameters={"model_sha256": maker.sha256, "um_per_px": f"{card.spacing_um_px:g}"},
    )
    segments: list[Any] = []
    for index, (name, color) in enumerate(zip(card.class_names, card.class_colors, strict=True)):
        if index == card.background_index:
            continue
        category, kind = map(_code, choose_concepts(name))
        segments.append(
            highdicom.seg.SegmentDescription(
                segment_number=len(segments) + 1,
                segment_label=_shorten(name),
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                display_color=highdicom.color.CIELabColor.from_rgb(*parse_color(color)),
            )
        )
    return segments


def _code(concept: Concept) -> Any:
    from pydicom.sr.coding import Code

    value, meaning = concept
    return Code(value, "SCT", meaning)


def _shorten(text: str) -> str:
    r"""Return text as a Long String of DICOM's: one line, 64 characters at most, no `\` between values."""
    return " ".join(text.replace("\\", "/").split())[:LONG_STRING].strip() or "unnamed"
