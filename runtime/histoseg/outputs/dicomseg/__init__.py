"""`segmentation.dcm`: the labels of a DICOM slide as a DICOM Segmentation in the slide's frame of reference.

Needs `pip install 'histoseg[dicom]'`. One BINARY segment for each class but the background, TILED_FULL and
not compressed: what today's slide viewers show. Frames are spooled as bands arrive, so memory is one row of
tiles.

The same labels of the same slide by the same model are the same bytes: UIDs are hashes of the content, dates
are the slide's, and nothing is taken from the clock. When it was made is in `report.json`.

DICOM PS3.3 A.51 (Segmentation IOD), C.7.6.17.3 (TILED_FULL), C.8.20 (segmentation modules).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from histoseg.errors import OutputError
from histoseg.outputs.dicomseg.frames import TILE_PX, BitFrames
from histoseg.outputs.dicomseg.header import Maker, build_header, encode_header, stamp_header
from histoseg.outputs.dicomseg.source import check_dicom, read_source
from histoseg.outputs.rows import RowBlocks

if TYPE_CHECKING:
    from histoseg.arrays import Labels
    from histoseg.card import ModelCard
    from histoseg.scale import Scale
    from histoseg.slide import Slide

__all__ = ["FILE_NAME", "DicomSegmentation", "Maker", "check_dicom"]

FILE_NAME = "segmentation.dcm"
# A length in DICOM is an even number of 32 bits, of which the largest means "undefined".
MOST_BYTES = 0xFFFFFFFE


class DicomSegmentation:
    """Writes `segmentation.dcm` from bands of labels. A context manager: leaving it drops the spool."""

    def __init__(self, path: Path, slide: Slide, scale: Scale, card: ModelCard, maker: Maker) -> None:
        """Read the slide's header and prepare to write: whatever stands in the way is said here.

        Args:
            path: The DICOM file; it appears when the segmentation is closed.
            slide: A `FileSlide` of DICOM files.
            scale: How labels lie over the slide.
            card: Classes and their colours.
            maker: Who made the labels.

        Raises:
            OptionError: highdicom is not installed.
            SlideError: The slide is no DICOM file, or its header does not say what a segmentation must.
            OutputError: More pixels than a DICOM file holds, or no space for the spool.
        """
        self._path = path
        source = read_source(slide)
        segments = [i for i in range(len(card.class_names)) if i != card.background_index]
        numbers = np.zeros(256, np.uint8)
        numbers[segments] = np.arange(1, len(segments) + 1)
        self._header = build_header(source, scale, card, maker)
        self._digest = hashlib.sha256()
        self._blocks = RowBlocks(TILE_PX)
        with self._explained():
            self._frames = BitFrames(path.parent, scale.m_size, numbers)
        if self._frames.size > MOST_BYTES:
            self._frames.drop()
            raise OutputError(
                f"{path}: {scale.m_size[0]} x {scale.m_size[1]} px of {len(segments)} classes are "
                f"{self._frames.size / 1e9:.1f} GB of DICOM segments, expected at most 4.2 GB in one file; "
                "leave out --dicom-seg"
            )

    def __enter__(self) -> Self:
        """Return the segmentation itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the spool."""
        self._frames.drop()

    def add(self, m_y: int, labels: Labels) -> None:
        """Take the next rows.

        Raises:
            OutputError: The spool cannot be written.
        """
        del m_y  # bands come in order
        self._digest.update(np.ascontiguousarray(labels).data)
        with self._explained():
            for block in self._blocks.push(labels):
                self._frames.put(block)

    def close(self) -> None:
        """Write the file.

        Raises:
            OutputError: It cannot be written.
        """
        rest = self._blocks.rest()
        # the header says all else that the file depends on
        self._digest.update(encode_header(self._header))
        stamp_header(self._header, self._digest.hexdigest())
        with self._explained():
            if rest is not None:
                self._frames.put(rest)
            with self._path.open("wb") as file:
                file.write(encode_header(self._header))
                self._frames.write(file)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot write the segmentation ({error}); free space or choose another -o"
            ) from error
