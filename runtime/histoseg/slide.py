"""Read uint8 RGB at the model's um/px from a slide file or an array.

Frames: `l0_` level-0 pixels from the slide's top left corner (its bounds, where the file states them),
`level_` pixels of one pyramid level, `m_` pixels at the model's um/px. One model pixel is the mean of the
level pixels it covers, on one grid for the whole slide, so that neighbouring reads never disagree.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from histoseg.card import parse_color
from histoseg.errors import SlideError, SpacingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels

# An overview is read in strips of at most this many pixels: 48 MB of RGB.
OVERVIEW_STRIP_PX = 1 << 24
# Where a level's downsample is fractional, it is read in blocks of this size from its corner on.
BLOCK_PX = 512


class Slide(Protocol):
    """What the runtime asks of a slide. Reading must be safe from several threads."""

    name: str
    level_sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, finest first."""
    spacing_um_px: tuple[float, float] | None
    """Level-0 um/px along x and y; `None` where the file does not say."""

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB of a region inside the level, in that level's pixels."""
        ...


class ArraySlide:
    """An RGB array in memory as a slide of one level."""

    def __init__(
        self, rgb: Pixels, spacing_um_px: float | tuple[float, float] | None, name: str = "array"
    ) -> None:
        """Wrap `rgb`, `(height, width, 3)` uint8, without copying it.

        Raises:
            SlideError: The array has another shape or dtype.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise SlideError(f"array is {rgb.dtype} {rgb.shape}, expected uint8 (height, width, 3)")
        self.name = name
        self.level_sizes = ((rgb.shape[1], rgb.shape[0]),)
        pair = (spacing_um_px, spacing_um_px) if isinstance(spacing_um_px, int | float) else spacing_um_px
        self.spacing_um_px = pair
        self._rgb = rgb

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a view of the region."""
        assert level == 0
        return self._rgb[y : y + height, x : x + width]


class FileSlide:
    """A slide file that OpenSlide reads. One handle serves many threads."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            SlideError: The file is missing, or no format that OpenSlide reads.
        """
        self.name = path.stem
        self.path = path
        self._handle = _open_handle(path)
        self._idle = threading.Condition()
        self._reading, self._closed = 0, False
        properties = self._handle.properties
        self._origin = _read_bounds_origin(properties)
        self._downsamples = tuple(self._handle.level_downsamples)
        self.level_sizes = _read_level_sizes(self._handle)
        self.spacing_um_px = _read_spacing(properties)
        self._background = np.array(
            parse_color(properties.get("openslide.background-color", "ffffff")), np.uint8
        )

    def __enter__(self) -> Self:
        """Return the slide itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file once nobody reads it any more; reading afterwards is an error.

        OpenSlide aborts the process when a slide is closed under a reader.
        """
        with self._idle:
            self._closed = True
            while self._reading:
                self._idle.wait()
        self._handle.close()

    @contextmanager
    def _use_handle(self) -> Iterator[Any]:
        with self._idle:
            if self._closed:
                raise SlideError(f"{self.path}: the slide is closed; open it again with open_slide")
            self._reading += 1
        try:
            yield self._handle
        finally:
            with self._idle:
                self._reading -= 1
                self._idle.notify_all()

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB, transparency laid over the slide's background colour.

        Raises:
            SlideError: The file is damaged here.
        """
        if self._downsamples[level].is_integer():
            return self._read_at(level, x, y, width, height)
        # OpenSlide takes level-0 coordinates. At a fractional downsample it interpolates, by an amount that
        # depends on where the region begins: so regions begin at the same places for every reader.
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % BLOCK_PX, y + height, BLOCK_PX):
            for left in range(x - x % BLOCK_PX, x + width, BLOCK_PX):
                x0, x1 = max(left, x), min(left + BLOCK_PX, x + width)
                y0, y1 = max(top, y), min(top + BLOCK_PX, y + height)
                block = self._read_at(level, left, top, x1 - left, y1 - top)
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top :, x0 - left :]
        return pixels

    def _read_at(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        import openslide

        downsample = self._downsamples[level]
        l0_corner = tuple(round(v * downsample) + o for v, o in zip((x, y), self._origin, strict=True))
        with self._use_handle() as handle:
            try:
                rgba = np.asarray(handle.read_region(l0_corner, level, (width, height)))
            except (openslide.OpenSlideError, OSError, ValueError) as error:
                raise SlideError(
                    f"{self.path}: cannot read {width}x{height} px at ({x}, {y}) of level {level} ({error}); "
                    "the file is damaged: copy it again from the scanner"
                ) from error
        return _flatten(rgba, self._background)


def open_slide(path: str | Path) -> FileSlide:
    """Open a slide file in any format that OpenSlide reads.

    Raises:
        SlideError: The file is missing, or no format that OpenSlide reads.
    """
    return FileSlide(Path(path))


@dataclass(frozen=True)
class Scale:
    """How model pixels lie over a pyramid level, along x and y."""

    level: int
    level_per_m: tuple[float, float]
    """Level pixels that one model pixel spans; whole numbers wherever the tolerance allows."""
    l0_per_m: tuple[float, float]
    m_size: tuple[int, int]
    spacing_um_px: tuple[float, float]
    """The um/px really used: the model's own, or within the tolerance of it."""


def plan_scale(
    slide: Slide, spacing_um_px: float, *, tolerance: float, mpp: float | None = None, force: bool = False
) -> Scale:
    """Choose the finest sufficient level, and how to resample it to the model's um/px.

    Args:
        slide: Where the level sizes and um/px come from.
        spacing_um_px: The model's um/px.
        tolerance: Fraction by which the um/px may differ before pixels are resampled.
        mpp: Level-0 um/px that overrides the slide's own.
        force: Run a slide that is too coarse for the model, enlarged.

    Raises:
        SpacingError: The slide states no um/px, or is too coarse for the model.
    """
    l0_spacing = (mpp, mpp) if mpp else slide.spacing_um_px
    if l0_spacing is None:
        raise SpacingError(
            f"{slide.name}: the slide does not state its um/px, which the model needs "
            f"({spacing_um_px:g} um/px); give it with --mpp"
        )
    l0_per_m = [spacing_um_px / value for value in l0_spacing]
    if min(l0_per_m) < 1 - tolerance and not force:
        raise SpacingError(
            f"{slide.name}: the slide has {max(l0_spacing):.4g} um/px, too coarse for a model of "
            f"{spacing_um_px:g} um/px; use a finer scan, --mpp if the slide's value is wrong, "
            "or --allow-coarse to enlarge it"
        )
    level = _choose_level(slide, l0_per_m, tolerance)
    return _snap_scale(slide, level, l0_per_m, l0_spacing, tolerance)


def _choose_level(slide: Slide, l0_per_m: list[float], tolerance: float) -> int:
    best = 0
    for level, size in enumerate(slide.level_sizes):
        spans = [
            per_m * here / full
            for per_m, here, full in zip(l0_per_m, size, slide.level_sizes[0], strict=True)
        ]
        if min(spans) >= 1 - tolerance:
            best = level
    return best


def _snap_scale(
    slide: Slide, level: int, l0_per_m: list[float], l0_spacing: tuple[float, float], tolerance: float
) -> Scale:
    per_m, l0, sizes = [], [], []
    for axis in (0, 1):
        size, full = slide.level_sizes[level][axis], slide.level_sizes[0][axis]
        span = l0_per_m[axis] * size / full
        whole = max(1, round(span))
        if abs(span / whole - 1) <= tolerance:
            span = float(whole)
        per_m.append(span)
        l0.append(span * full / size)
        # a last model pixel that is only partly covered still counts
        sizes.append(max(1, math.ceil(size / span - 1e-6)))
    spacing = (l0[0] * l0_spacing[0], l0[1] * l0_spacing[1])
    return Scale(level, (per_m[0], per_m[1]), (l0[0], l0[1]), (sizes[0], sizes[1]), spacing)


class ScaledSlide:
    """A slide seen at one um/px: reads model pixels, reflected at the slide's borders."""

    def __init__(self, slide: Slide, scale: Scale) -> None:
        """See `slide` through `scale`."""
        self.slide = slide
        self.scale = scale

    @property
    def m_size(self) -> tuple[int, int]:
        """Width and height in model pixels."""
        return self.scale.m_size

    def read(self, m_x: int, m_y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB at the model's um/px.

        The region may reach outside the slide: pixels there mirror those inside (the border pixel itself
        is not repeated), however far outside they lie.

        Raises:
            SlideError: The file is damaged here.
        """
        columns = reflect_indices(m_x, width, self.m_size[0])
        rows = reflect_indices(m_y, height, self.m_size[1])
        left, top = int(columns.min()), int(rows.min())
        inside = self._read_inside(left, top, int(columns.max()) + 1, int(rows.max()) + 1)
        if len(columns) == inside.shape[1] and len(rows) == inside.shape[0] and left == m_x and top == m_y:
            return inside
        return np.ascontiguousarray(inside[rows - top][:, columns - left])

    def _read_inside(self, m_x0: int, m_y0: int, m_x1: int, m_y1: int) -> Pixels:
        level_size = self.slide.level_sizes[self.scale.level]
        spans = self.scale.level_per_m
        x0, x1 = _cover(m_x0, m_x1, spans[0], level_size[0])
        y0, y1 = _cover(m_y0, m_y1, spans[1], level_size[1])
        pixels = self.slide.read_level(self.scale.level, x0, y0, x1 - x0, y1 - y0)
        m_width, m_height = m_x1 - m_x0, m_y1 - m_y0
        if spans == (1.0, 1.0):
            return pixels
        if spans[0].is_integer() and spans[1].is_integer():
            return average_blocks(pixels, int(spans[0]), int(spans[1]), m_width, m_height)
        start = (m_x0 * spans[0] - x0, m_y0 * spans[1] - y0)
        return average_areas(pixels, start, spans, (m_width, m_height))


def read_overview(slide: Slide, max_side_px: int) -> Pixels:
    """Return the whole slide as RGB of at most `max_side_px` on its longer side, averaged over areas.

    Reads strip by strip from the coarsest sufficient level: memory stays fixed for a slide of one level.
    """
    import cv2

    level = max(
        (i for i, size in enumerate(slide.level_sizes) if i == 0 or max(size) >= max_side_px), default=0
    )
    width, height = slide.level_sizes[level]
    factor = max(1.0, max(width, height) / max_side_px)
    out_w, out_h = max(1, int(width / factor)), max(1, int(height / factor))
    overview = np.empty((out_h, out_w, 3), np.uint8)
    strip = max(1, int(OVERVIEW_STRIP_PX / width / factor))
    for top in range(0, out_h, strip):
        bottom = min(out_h, top + strip)
        y0, y1 = top * height // out_h, max(top * height // out_h + 1, bottom * height // out_h)
        pixels = slide.read_level(level, 0, y0, width, y1 - y0)
        overview[top:bottom] = cv2.resize(pixels, (out_w, bottom - top), interpolation=cv2.INTER_AREA)
    return overview


def reflect_indices(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Return `count` indices from `start` on, mirrored into `[0, length)` without repeating the border."""
    indices = np.arange(start, start + count)
    if length == 1:
        return np.zeros(count, np.intp)
    period = 2 * (length - 1)
    indices = np.abs(indices) % period
    return np.minimum(indices, period - indices)


def average_blocks(pixels: Pixels, span_x: int, span_y: int, width: int, height: int) -> Pixels:
    """Return the means of blocks of `span_x` x `span_y` pixels, `(height, width, 3)` uint8.

    A last block that is cut by the slide's border is the mean of what there is of it.
    """
    import cv2

    means = np.empty((height, width, 3), np.uint8)
    rows, columns = pixels.shape[0] // span_y, pixels.shape[1] // span_x
    if rows and columns:
        whole = pixels[: rows * span_y, : columns * span_x]
        means[:rows, :columns] = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    if rows < height:
        means[rows:] = average_areas(pixels[rows * span_y :], (0.0, 0.0), (span_x, span_y), (width, 1))
    if columns < width:
        right = pixels[:, columns * span_x :]
        means[:, columns:] = average_areas(right, (0.0, 0.0), (span_x, span_y), (1, height))
    return means


def average_areas(
    pixels: Pixels, start: tuple[float, float], span: tuple[float, float], size: tuple[int, int]
) -> Pixels:
    """Return the means of areas of `span` pixels, `(height, width, 3)` uint8; see `average_axis`."""
    rows = average_axis(pixels, 0, start[1], span[1], size[1])
    return np.asarray(np.rint(average_axis(rows, 1, start[0], span[0], size[0])), np.uint8)


def average_axis(pixels: Pixels | Floats, axis: int, start: float, span: float, count: int) -> Floats:
    """Average pixels along one axis, partly covered ones by their share.

    Output pixel `i` is the mean over `[start + i * span, start + (i + 1) * span)`, as far as there are
    pixels. A span below 1 enlarges.

    Args:
        pixels: `(height, width, 3)`.
        axis: 0 for rows, 1 for columns.
        start: Where the first output pixel begins, in `pixels`.
        span: Pixels that one output pixel spans.
        count: Output pixels.

    Returns:
        float32 with `count` pixels along `axis`.
    """
    length = pixels.shape[axis]
    starts = start + np.arange(count) * span
    first = np.floor(starts + 1e-9).astype(np.intp)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total = np.zeros((*pixels.shape[:axis], count, *pixels.shape[axis + 1 :]), np.float32)
    shares = np.zeros(count, np.float32)
    for tap in range(math.ceil(span) + 1):
        index = first + tap
        covered = np.minimum(index + 1, starts + span) - np.maximum(index, starts)
        share = np.where(index < length, covered.clip(0, 1), 0).astype(np.float32)
        if share.any():
            total += np.take(pixels, np.minimum(index, length - 1), axis=axis) * share.reshape(shape)
            shares += share
    total /= shares.reshape(shape)
    return total


def _cover(m0: int, m1: int, span: float, length: int) -> tuple[int, int]:
    return max(0, math.floor(m0 * span + 1e-9)), min(length, math.ceil(m1 * span - 1e-9))


def _flatten(rgba: Pixels, background: Pixels) -> Pixels:
    alpha = rgba[..., 3:]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.float32) / 255
    return np.rint(rgba[..., :3] * weight + background * (1 - weight)).astype(np.uint8)


def _open_handle(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise SlideError(
            f"OpenSlide cannot be loaded ({error}); "
            "repair with: pip install --force-reinstall openslide-python openslide-bin"
        ) from error
    if not path.exists():
        raise SlideError(f"{path}: no such file")
    try:
        return openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path}: {_explain_unreadable(path, error)}") from error


def _explain_unreadable(path: Path, error: Exception) -> str:
    """Say in words why a file did not open as a slide."""
    if path.is_dir():
        return "is a folder, expected a slide file"
    if not path.is_file():
        return "is no regular file, expected a slide file"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as unreadable:
        return f"cannot be read ({unreadable.strerror}); check its permissions"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a slide: fetch the real file with `git lfs pull`"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return (
            f"is a TIFF that OpenSlide cannot read ({error}): expected a tiled slide; "
            "convert it with `vips tiffsave --tile --pyramid`"
        )
    return (
        f"is no slide that OpenSlide reads ({error}): expected SVS, NDPI, MRXS, DICOM, tiled TIFF or the like"
    )


def _read_level_sizes(handle: Any) -> tuple[tuple[int, int], ...]:
    """Return level sizes cut to the slide's bounds, where the file states them."""
    properties = handle.properties
    full = handle.level_dimensions[0]
    width = min(int(properties.get("openslide.bounds-width", full[0])), full[0])
    height = min(int(properties.get("openslide.bounds-height", full[1])), full[1])
    if (width, height) == full:
        return tuple(handle.level_dimensions)
    return tuple((max(1, int(width / ds)), max(1, int(height / ds))) for ds in handle.level_downsamples)


def _read_bounds_origin(properties: Any) -> tuple[int, int]:
    return int(properties.get("openslide.bounds-x", 0)), int(properties.get("openslide.bounds-y", 0))


def _read_spacing(properties: Any) -> tuple[float, float] | None:
    try:
        x, y = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
    except (KeyError, ValueError):
        return None
    return (x, y) if x > 0 and y > 0 and math.isfinite(x + y) else None
