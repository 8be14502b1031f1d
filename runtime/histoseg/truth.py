"""What is true of a slide: masks and annotations, read as class indices at the model's um/px.

Masks are index masks or 0/255 masks, PNG, JPEG or TIFF, at any whole-number scale to the slide. A TIFF is
read row by row, so that a truth of slide size costs no memory; other pictures are loaded whole. Annotations
are QuPath GeoJSON or ImageScope XML in level-0 pixels.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from histoseg.annotations import Region, fill_region, is_annotation_file, load_regions
from histoseg.errors import AnnotationError, TruthError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels
    from histoseg.card import ModelCard
    from histoseg.slide import Scale

    Size = tuple[int, int]

NO_CLASS = 255


class _Rows(Protocol):
    size: Size

    def read(self, top: int, bottom: int) -> Labels: ...

    def close(self) -> None: ...


class Truth(Protocol):
    """Class indices of a slide, row by row. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8."""
        ...


def open_truth(path: Path, card: ModelCard, scale: Scale, l0_size: Size) -> Truth:
    """Open a mask or an annotation file.

    Args:
        path: PNG, JPEG, TIFF, GeoJSON or ImageScope XML.
        card: Whose classes the truth must name.
        scale: How the model's pixels lie on the slide.
        l0_size: Width and height of the slide at level 0.

    Raises:
        TruthError: The mask is missing, unreadable, or does not fit the slide.
        AnnotationError: The annotations cannot be read, or name a class that the model does not have.
    """
    if is_annotation_file(path):
        return TruthRegions(path, card, scale)
    return TruthMask(path, scale.m_size, len(card.class_names), l0_size)


class TruthRegions:
    """Annotations seen at the model's um/px; later areas lie over earlier ones."""

    def __init__(self, path: Path, card: ModelCard, scale: Scale) -> None:
        """Read an annotation file; see `open_truth`."""
        regions = load_regions(path)
        self._width = scale.m_size[0]
        self._background = card.background_index
        self._scale = scale.l0_per_m
        self._areas = [
            (region, value) for region in regions if (value := _find_class(path, region, card)) is not None
        ]
        if not any(_touches(region, scale) for region, _ in self._areas):
            raise TruthError(
                f"{path}: no area lies on the slide, {scale.m_size[0]}x{scale.m_size[1]} px for this model; "
                "expected level-0 pixels of this very slide"
            )
        self._spans = np.array([_span_rows(region, scale.l0_per_m[1]) for region, _ in self._areas])

    def __enter__(self) -> Self:
        """Return the truth itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: the file is read whole."""

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8."""
        rows = np.full((count, self._width), self._background, np.uint8)
        touching = (self._spans[:, 0] < m_y + count) & (self._spans[:, 1] > m_y)
        for index in np.flatnonzero(touching):
            region, value = self._areas[index]
            fill_region(rows, region, value, scale=self._scale, m_y=m_y)
        return rows


def _find_class(path: Path, region: Region, card: ModelCard) -> int | None:
    """Return the class that a region stands for; `None` for those that QuPath ignores (`Ignore*`)."""
    name = region.class_name
    if region.erases:
        return card.background_index
    if name is None and len(card.class_names) == 2:
        return 1 - card.background_index
    if name is not None and name.endswith("*"):
        return None
    known = {known.casefold(): index for index, known in enumerate(card.class_names)}
    if name is None or name.casefold() not in known:
        raise AnnotationError(
            f"{path}: holds an area of "
            + ("no class" if name is None else f"the class '{name}'")
            + f", expected one of {', '.join(card.class_names)}"
        )
    return known[name.casefold()]


def _touches(region: Region, scale: Scale) -> bool:
    points = np.concatenate(region.rings) / scale.l0_per_m
    return bool((points.max(axis=0) > 0).all() and (points.min(axis=0) < scale.m_size).all())


def _span_rows(region: Region, l0_per_m: float) -> tuple[float, float]:
    rows = np.concatenate([ring[:, 1] for ring in region.rings]) / l0_per_m
    return float(rows.min()), float(rows.max())


class TruthMask:
    """A truth mask seen at the model's um/px."""

    def __init__(self, path: Path, m_size: Size, classes: int, l0_size: Size | None = None) -> None:
        """Open a mask of a whole slide.

        Args:
            path: PNG, JPEG or TIFF, one channel. Two classes may also be 0 and 255; JPEG always is.
            m_size: Width and height of the slide in model pixels.
            classes: Classes of the model.
            l0_size: Width and height of the slide at level 0.

        Raises:
            TruthError: The file is missing, unreadable, or of a size that is no whole scale of the slide.
        """
        if not path.is_file():
            raise TruthError(f"{path}: no such truth mask")
        self._path = path
        self._classes = classes
        self._rows = _open_rows(path)
        width, height = self._rows.size
        sizes = [m_size] if l0_size is None or l0_size == m_size else [m_size, l0_size]
        if not any(is_whole_scale(self._rows.size, size) for size in sizes):
            wanted = " or ".join(f"{size[0]}x{size[1]}" for size in sizes)
            raise TruthError(
                f"{path}: the truth is {width}x{height} px, expected {wanted} px, or a whole multiple or "
                "fraction of that; give a mask of the whole slide"
            )
        self._columns = _nearest(width, m_size[0])
        self._lines = _nearest(height, m_size[1])
        self._meaning = _read_meaning(classes, lossy=path.suffix.lower() in (".jpg", ".jpeg"))

    def __enter__(self) -> Self:
        """Return the mask itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._rows.close()

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8.

        Raises:
            TruthError: A value is no class of the model, or the file is damaged here.
        """
        lines = self._lines[m_y : m_y + count]
        top, bottom = int(lines[0]), int(lines[-1]) + 1
        try:
            values = self._rows.read(top, bottom)[lines - top][:, self._columns]
        except Exception as error:  # each codec has errors of its own
            raise TruthError(f"{self._path}: the truth is damaged ({error}); write it again") from error
        labels = self._meaning[values]
        if (labels == NO_CLASS).any():
            found = values[labels == NO_CLASS].max()
            raise TruthError(
                f"{self._path}: the truth holds the value {found}, expected class indices 0 to "
                f"{self._classes - 1}" + (", or 0 and 255" if self._classes == 2 else "")
            )
        return labels


def is_whole_scale(size: Size, other: Size) -> bool:
    """Tell whether one size is the other times a whole number, up to a cut last pixel."""
    for small, large in ((size, other), (other, size)):
        factor = max(1, round(large[0] / small[0]))
        if all(abs(a * factor - b) < factor for a, b in zip(small, large, strict=True)):
            return True
    return False


class _ArrayRows:
    def __init__(self, values: Labels) -> None:
        self.size = (values.shape[1], values.shape[0])
        self._values = values

    def read(self, top: int, bottom: int) -> Labels:
        return self._values[top:bottom]

    def close(self) -> None:
        pass


class _TiffRows:
    """Rows of a TIFF's first page, decoded as they are asked for."""

    def __init__(self, tif: Any) -> None:
        self._page = page = tif.pages[0]
        self._file = tif.filehandle
        self.size = (page.imagewidth, page.imagelength)
        self._height = page.tilelength if page.is_tiled else page.rowsperstrip
        self._across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1

    def read(self, top: int, bottom: int) -> Labels:
        rows = np.zeros((bottom - top, self.size[0]), np.uint8)
        first, last = top // self._height, -(-bottom // self._height)
        for index in range(first * self._across, last * self._across):
            segment = self._decode(index)
            if segment is None:
                continue  # a tile left out of the file is background
            y, x = index // self._across * self._height, index % self._across * self._page.tilewidth
            y0, y1 = max(y, top), min(y + segment.shape[0], bottom)
            x1 = min(x + segment.shape[1], self.size[0])
            rows[y0 - top : y1 - top, x:x1] = segment[y0 - y : y1 - y, : x1 - x]
        return rows

    def close(self) -> None:
        self._file.close()

    def _decode(self, index: int) -> NDArray[Any] | None:
        count = self._page.databytecounts[index]
        if count == 0:
            return None
        self._file.seek(self._page.dataoffsets[index])
        segment, _, _ = self._page.decode(self._file.read(count), index, jpegtables=self._page.jpegtables)
        return None if segment is None else np.asarray(segment[0, ..., 0])


def _open_rows(path: Path) -> _Rows:
    if path.suffix.lower() in (".tif", ".tiff"):
        return _open_tiff(path)
    return _ArrayRows(_load_picture(path))


def _open_tiff(path: Path) -> _TiffRows:
    import tifffile

    try:
        page = (tif := tifffile.TiffFile(path)).pages[0]
    except (tifffile.TiffFileError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        raise TruthError(
            f"{path}: cannot be read as a TIFF ({error}), expected an index or 0/255 mask"
        ) from error
    assert isinstance(page, tifffile.TiffPage)
    _check_kind(path, page.samplesperpixel, page.dtype)
    side = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    if not all(isinstance(value, int) and value > 0 for value in (*side, *page.shape)):
        raise TruthError(f"{path}: is a damaged TIFF (sizes {side} and {page.shape}); write it again")
    return _TiffRows(tif)


def _load_picture(path: Path) -> Labels:
    """Return a picture's values; of a palette its indices, which OpenCV would turn into colours."""
    from PIL import Image

    # a truth of slide size is no attack: the person at the keyboard named it
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise TruthError(
            f"{path}: cannot be read as a picture ({error}), expected an index or 0/255 mask"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if values.ndim == 3 and (values[..., :1] == values[..., :3]).all():
        values = values[..., 0]  # grey, saved as colour
    _check_kind(path, 1 if values.ndim == 2 else values.shape[2], values.dtype)
    return values.astype(np.uint8, copy=False)


def _check_kind(path: Path, channels: int, dtype: Any) -> None:
    if channels != 1:
        raise TruthError(f"{path}: the truth is a colour picture, expected one channel of class indices")
    if dtype not in (np.uint8, np.bool_):
        raise TruthError(f"{path}: the truth is {dtype}, expected uint8 class indices or a 0/255 mask")


def _read_meaning(classes: int, *, lossy: bool) -> Labels:
    """Return the class of each of the 256 values, `NO_CLASS` where there is none."""
    meaning = np.full(256, NO_CLASS, np.uint8)
    if lossy and classes == 2:
        meaning[:128], meaning[128:] = 0, 1  # compression blurs 0 and 255
        return meaning
    meaning[:classes] = np.arange(classes)
    if classes == 2:
        meaning[255] = 1
    return meaning


def _nearest(have: int, want: int) -> NDArray[np.intp]:
    centers = (np.arange(want) + 0.5) * have / want
    return np.minimum(centers.astype(np.intp), have - 1)
