"""The DICOM slide that a segmentation refers to: which of its files, and where that lies on the glass.

A DICOM slide is a series: one file for each level of the pyramid, besides label and overview. OpenSlide is
given any of them and finds the others in the same folder; so does this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import OptionError, SlideError
from histoseg.slidefile import FileSlide

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

    from histoseg.scale import Scale
    from histoseg.slide import Slide

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
MAGIC_AT, MAGIC = 128, b"DICM"
PER_FRAME_GROUPS = 0x52009230
# What one file of a series is known by.
KEYS = ("SOPClassUID", "SeriesInstanceUID", "ImageType", "TotalPixelMatrixColumns", "TotalPixelMatrixRows")
NEEDED = ("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ImageOrientationSlide")


@dataclass(frozen=True)
class Placement:
    """Where a matrix of pixels lies in the slide coordinate system, in mm."""

    origin: tuple[float, float, float]
    """Centre of the first pixel."""
    orientation: tuple[float, ...]
    """Directions of rows and of columns, three cosines each: DICOM's Image Orientation (Slide)."""
    spacing: tuple[float, float]
    """From one pixel to the next along x and y."""


def check_dicom(slide: Slide) -> Path:
    """Return a slide's file if a segmentation of it can be written, as far as that is quick to tell.

    Raises:
        OptionError: highdicom is not installed.
        SlideError: The slide is no DICOM file.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise OptionError("--dicom-seg needs highdicom; pip install 'histoseg[dicom]'") from error
    path = slide.path if isinstance(slide, FileSlide) else None
    if path is None or not _is_dicom(path):
        raise SlideError(
            f"{path or slide.name}: is no DICOM file, expected a DICOM slide, to which a DICOM segmentation "
            "can refer; leave out --dicom-seg, labels.tif has the same labels"
        )
    return path


def read_source(slide: Slide) -> FileDataset:
    """Return the header of a slide's level 0, all text decoded, without what is said of each frame.

    Raises:
        OptionError: highdicom is not installed.
        SlideError: The slide is no DICOM file, or does not say where it lies.
    """
    path = check_dicom(slide)
    source = _read_header(_find_level0(path, slide.level_sizes[0]))
    with explain_damage(path):
        source.decode()
        missing = [name for name in NEEDED if not source.get(name)]
        if _find_spacing(source) is None:
            missing.append("PixelSpacing")
    if missing:
        raise SlideError(
            f"{path}: the DICOM header has no {' and no '.join(missing)}, expected where the slide lies; "
            "leave out --dicom-seg"
        )
    return source


def place_source(source: Dataset) -> Placement:
    """Return where a slide's level 0 lies.

    A slide that does not state its origin lies at the slide coordinate system's own: its segmentation then
    agrees with it, though not with the glass.
    """
    stated = source.get("TotalPixelMatrixOriginSequence")
    corner = stated[0] if stated else {}
    names = (f"{axis}OffsetInSlideCoordinateSystem" for axis in "XYZ")
    x, y, z = (float(corner.get(name) or 0) for name in names)
    spacing = _find_spacing(source)
    assert spacing is not None
    orientation = tuple(float(value) for value in source.ImageOrientationSlide)
    return Placement((x, y, z), orientation, (spacing[1], spacing[0]))


def place_labels(source: Placement, scale: Scale) -> Placement:
    """Return where labels lie, whose top left corner is the top left corner of the slide.

    The origin is the centre of the first pixel, of larger pixels further in. The um/px are the slide's own
    even where `--mpp` overrode them: labels have to lie on the pixels that they are labels of.
    """
    along = np.array(source.orientation).reshape(2, 3)
    steps = [(per_m - 1) / 2 * mm for per_m, mm in zip(scale.l0_per_m, source.spacing, strict=True)]
    x, y, z = np.array(source.origin) + np.array(steps) @ along
    spacing = (scale.l0_per_m[0] * source.spacing[0], scale.l0_per_m[1] * source.spacing[1])
    return Placement((float(x), float(y), float(z)), source.orientation, spacing)


@contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Turn what pydicom and highdicom raise over a header into one error.

    Raises:
        SlideError: The header is damaged, or holds what DICOM does not allow.
    """
    from pydicom.errors import BytesLengthException

    try:
        yield
    except (
        *(AttributeError, BytesLengthException, EOFError, LookupError, NotImplementedError, OSError),
        *(TypeError, ValueError, struct.error),
    ) as error:
        cause = str(error).partition("\n")[0]  # pydicom adds its traceback
        raise SlideError(
            f"{path}: the DICOM header cannot be used ({cause}), expected that of a DICOM slide; "
            "leave out --dicom-seg"
        ) from error


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(MAGIC_AT)
        return file.read(len(MAGIC)) == MAGIC


def _find_level0(path: Path, l0_size: tuple[int, int]) -> Path:
    series = _read_header(path, KEYS).get("SeriesInstanceUID")
    for other, header in _iter_headers(path):
        size = (header.get("TotalPixelMatrixColumns"), header.get("TotalPixelMatrixRows"))
        kind = header.get("ImageType") or ()
        same = header.get("SOPClassUID") == SLIDE_CLASS and header.get("SeriesInstanceUID") == series
        if same and size == l0_size and "VOLUME" in kind:
            return other
    raise SlideError(
        f"{path}: no file of its series in {path.parent} has {l0_size[0]} x {l0_size[1]} px of type VOLUME, "
        "expected the slide's level 0; leave out --dicom-seg"
    )


def _iter_headers(path: Path) -> Iterator[tuple[Path, Dataset]]:
    """Yield the file itself, then the other DICOM files of its folder by name."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other.name != path.name)
    for file in [path, *others]:
        try:
            header = _read_header(file, KEYS) if _is_dicom(file) else None
        except OSError:  # what else lies there need not be readable
            header = None
        if header is not None:
            yield file, header


def _read_header(path: Path, names: tuple[str, ...] | None = None) -> FileDataset:
    """Read what comes before the part that grows with the number of frames: all of it, or some elements.

    Raises:
        SlideError: The file is damaged.
    """
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_partial

    tags: Any = [tag_for_keyword(name) for name in names] if names else None
    with explain_damage(path), path.open("rb") as file:
        header = read_partial(file, lambda tag, vr, length: tag >= PER_FRAME_GROUPS, specific_tags=tags)
        for name in names or ():
            header.get(name)  # values are parsed now: damage shows here
    return header


def _find_spacing(source: Dataset) -> tuple[float, float] | None:
    """Return mm from row to row and from column to column; `None` where the header does not say."""
    shared = source.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    spacing = measures[0].get("PixelSpacing") if measures else None
    return (float(spacing[0]), float(spacing[1])) if spacing else None
