"""Masks as truth: index masks and 0/255 masks, PNG or TIFF, of any whole-number scale to the slide.

A tiled or stripped TIFF is read row by row, so that a truth of slide size costs no memory; other pictures
are loaded whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histoseg.errors import TruthError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels

ASPECT_TOLERANCE = 0.01


class _Rows(Protocol):
    shape: tuple[int, int]

    def read(self, top: int, bottom: int) -> Labels: ...


class TruthMask:
    """A truth mask seen at the model's um/px."""

    def __init__(self, path: Path, m_size: tuple[int, int], classes: int) -> None:
        """Open a mask for a slide of `m_size` (width, height) model pixels.

        Raises:
            TruthError: The file is missing, unreadable, or of another shape than the slide.
        """
        if not path.is_file():
            raise TruthError(f"{path}: no such truth mask")
        self._path = path
        self._classes = classes
        self._rows = _open_rows(path)
        height, width = self._rows.shape
        ratio = (width / m_size[0]) / (height / m_size[1])
        # a pixel more or less is rounding, whatever it does to the aspect of a narrow slide
        slack = max(ASPECT_TOLERANCE, 1.5 / min(width, height, *m_size))
        if abs(ratio - 1) > slack:
            raise TruthError(
                f"{path}: the truth is {width}x{height} px, which is no whole scale of the slide, "
                f"{m_size[0]}x{m_size[1]} px for this model; give a mask of the whole slide"
            )
        self._m_size = m_size
        self._columns = _nearest(width, m_size[0])
        self._lines = _nearest(height, m_size[1])

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8.

        Raises:
            TruthError: A value is no class of the model.
        """
        lines = self._lines[m_y : m_y + count]
        top, bottom = int(lines[0]), int(lines[-1]) + 1
        values = self._rows.read(top, bottom)[lines - top][:, self._columns]
        if self._classes == 2 and values.max(initial=0) > 1:
            return self._read_binary(values)
        if values.max(initial=0) >= self._classes:
            raise TruthError(
                f"{self._path}: the truth holds the value {values.max()}, expected class indices 0 to "
                f"{self._classes - 1}" + (" or a 0/255 mask" if self._classes == 2 else "")
            )
        return values

    def _read_binary(self, values: Labels) -> Labels:
        found = np.unique(values)
        lossy = self._path.suffix.lower() in (".jpg", ".jpeg")
        if not lossy and not set(found.tolist()) <= {0, 255}:
            raise TruthError(
                f"{self._path}: the truth holds the values {', '.join(map(str, found[:6]))}, "
                "expected 0 and 1, or 0 and 255"
            )
        return (values > 127).astype(np.uint8)


class _ArrayRows:
    def __init__(self, values: Labels) -> None:
        self.shape = (values.shape[0], values.shape[1])
        self._values = values

    def read(self, top: int, bottom: int) -> Labels:
        return self._values[top:bottom]


class _TiffRows:
    """Rows of a TIFF's first page, decoded as they are asked for."""

    def __init__(self, tif: Any) -> None:
        self._tif = tif
        self._page = tif.pages[0]
        self.shape = (self._page.imagelength, self._page.imagewidth)

    def read(self, top: int, bottom: int) -> Labels:
        page = self._page
        across = page.chunked[-2] if page.is_tiled else 1
        height = page.chunks[0]
        rows = np.zeros((bottom - top, page.imagewidth), np.uint8)
        for index in range(top // height * across, -(-bottom // height) * across):
            if index >= len(page.dataoffsets):
                break
            self._tif.filehandle.seek(page.dataoffsets[index])
            data = self._tif.filehandle.read(page.databytecounts[index])
            segment, (_, _, y, x, _), (_, h, w, _) = page.decode(data, index)
            if segment is None:
                continue  # a tile left out of the file is background
            y0, y1 = max(y, top), min(y + h, bottom)
            if y0 < y1:
                rows[y0 - top : y1 - top, x : x + w] = segment[0, y0 - y : y1 - y, :w, 0]
        return rows


def _open_rows(path: Path) -> _Rows:
    if path.suffix.lower() in (".tif", ".tiff"):
        rows = _open_tiff(path)
        if rows is not None:
            return rows
    return _ArrayRows(_load_picture(path))


def _open_tiff(path: Path) -> _TiffRows | None:
    """Open a TIFF of one uint8 channel for reading by rows; `None` where OpenCV has to decode it."""
    import tifffile

    try:
        tif = tifffile.TiffFile(path)
        page = tif.pages[0]
        plain = page.samplesperpixel == 1 and page.dtype == np.uint8  # type: ignore[union-attr]
        rows = _TiffRows(tif)
        rows.read(0, 1)  # a codec that tifffile lacks shows here
    except (tifffile.TiffFileError, ValueError, IndexError, AttributeError):
        return None
    return rows if plain else None


def _load_picture(path: Path) -> Labels:
    import cv2

    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise TruthError(
            f"{path}: cannot be read as a picture, expected an index or 0/255 mask (PNG or TIFF)"
        )
    if values.dtype != np.uint8:
        raise TruthError(f"{path}: the truth is {values.dtype}, expected uint8 class indices or a 0/255 mask")
    if values.ndim == 3:
        if not (values[..., :1] == values[..., :3]).all():
            raise TruthError(f"{path}: the truth is a colour picture, expected one channel of class indices")
        values = values[..., 0]
    return np.ascontiguousarray(values)


def _nearest(have: int, want: int) -> NDArray[np.intp]:
    centers = (np.arange(want) + 0.5) * have / want
    return np.minimum(centers.astype(np.intp), have - 1)
