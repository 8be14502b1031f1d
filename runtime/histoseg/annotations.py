"""Regions that a person drew: QuPath GeoJSON and ImageScope XML, in level-0 pixels of the slide.

Files come from strangers: XML with entities is refused (defusedxml), nothing is resolved or fetched.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import AnnotationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels

    Ring = NDArray[np.float64]

GEOJSON_SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
XML_SUFFIXES = (".xml",)

# Of ImageScope's regions, 0 freehand, 1 rectangle and 2 ellipse have an inside; arrows and rulers do not.
_ELLIPSE, _AREAS = "2", ("0", "1", "2")
_ELLIPSE_POINTS = 128


@dataclass(frozen=True)
class Region:
    """A drawn area: where an odd number of its rings go around."""

    class_name: str | None
    rings: tuple[Ring, ...]
    """`(n, 2)` float64 level-0 x and y of each ring, outer ones and holes alike."""
    erases: bool = False
    """The region is cut out of those before it (ImageScope's negative regions)."""


def is_annotation_file(path: Path) -> bool:
    """Tell by its name whether a file holds annotations."""
    return path.name.lower().endswith(GEOJSON_SUFFIXES + XML_SUFFIXES)


def load_regions(path: Path) -> tuple[Region, ...]:
    """Read the areas of an annotation file, in drawing order; points and lines are left out.

    Raises:
        AnnotationError: The file cannot be read, is malformed, or holds no area.
    """
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"{path}: cannot be read ({error})") from error
    parse = _parse_xml if path.name.lower().endswith(XML_SUFFIXES) else _parse_geojson
    try:
        regions = tuple(parse(data))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        kind = "ImageScope XML" if parse is _parse_xml else "GeoJSON"
        words = " ".join(str(error).split())[:120]
        raise AnnotationError(
            f"{path}: is no {kind} that can be used ({type(error).__name__}: {words})"
        ) from error
    if not regions:
        raise AnnotationError(f"{path}: holds no area, expected polygons")
    return regions


def fill_region(rows: Labels, region: Region, value: int, *, scale: tuple[float, float], m_y: int) -> None:
    """Set the pixels of `rows` whose centres lie inside a region.

    Args:
        rows: `(count, width)` rows of a mask of the whole slide, changed in place.
        region: Even-odd over all of its rings.
        value: What inside pixels become.
        scale: Level-0 pixels of one mask pixel, along x and y.
        m_y: Mask row of `rows[0]`.
    """
    points = [ring / scale - (0.0, float(m_y)) for ring in region.rings]
    low, high = (
        np.min([p.min(axis=0) for p in points], axis=0),
        np.max([p.max(axis=0) for p in points], axis=0),
    )
    x0, y0 = np.maximum(np.floor(low), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(high).astype(int), (rows.shape[1], rows.shape[0]))
    if x0 >= x1 or y0 >= y1:
        return
    crossings = np.zeros((y1 - y0, x1 - x0 + 1), np.int32)
    for ring in points:
        _count_crossings(crossings, ring - (x0, y0))
    inside = (np.cumsum(crossings[:, :-1], axis=1) & 1).astype(bool)
    rows[y0:y1, x0:x1][inside] = value


def _count_crossings(crossings: NDArray[np.int32], ring: Ring) -> None:
    """Count, at the first pixel centre to its right, where each ring edge crosses a row's centre line."""
    start, end = ring, np.roll(ring, -1, axis=0)
    down = np.where(start[:, 1:] <= end[:, 1:], start, end)
    up = np.where(start[:, 1:] <= end[:, 1:], end, start)
    height, width = crossings.shape[0], crossings.shape[1] - 1
    first = np.clip(np.ceil(down[:, 1] - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(up[:, 1] - 0.5), 0, height).astype(int)
    counts = last - first
    edges = np.repeat(np.arange(len(ring)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    slope = (up[edges, 0] - down[edges, 0]) / (up[edges, 1] - down[edges, 1])
    x = down[edges, 0] + (rows + 0.5 - down[edges, 1]) * slope
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    np.add.at(crossings, (rows, columns), 1)


def _parse_geojson(data: bytes) -> Iterator[Region]:
    document = json.loads(data)
    features = document.get("features", [document]) if isinstance(document, dict) else document
    for feature in features:
        properties = feature.get("properties") or {}
        name = (properties.get("classification") or {}).get("name")
        for rings in _iter_polygons(feature.get("geometry") or {}):
            yield Region(name, tuple(_as_ring(ring) for ring in rings))


def _iter_polygons(geometry: dict[str, Any]) -> Iterator[Iterable[Any]]:
    kind = geometry.get("type")
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _iter_polygons(part)


def _parse_xml(data: bytes) -> Iterator[Region]:
    from xml.etree.ElementTree import ParseError

    from defusedxml import ElementTree

    try:
        root = ElementTree.fromstring(data)
    except ParseError as error:
        raise ValueError(str(error)) from error
    for annotation in root.iter("Annotation"):
        for region in annotation.iter("Region"):
            kind = region.get("Type", "0")
            if kind not in _AREAS:
                continue
            points = [(float(v.get("X", "")), float(v.get("Y", ""))) for v in region.iter("Vertex")]
            if len(points) < 2 + (kind != _ELLIPSE):
                continue  # a click without an area: MoNuSeg's own files hold some
            ring = _as_ellipse(points) if kind == _ELLIPSE else _as_ring(points)
            name = region.get("Text") or annotation.get("Name") or None
            yield Region(name, (ring,), erases=region.get("NegativeROA") == "1")


def _as_ring(points: Any) -> Ring:
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError(f"a ring of {len(ring)} points, expected at least 3 pairs of numbers")
    return ring


def _as_ellipse(points: list[tuple[float, float]]) -> Ring:
    """Return the ellipse inside the box that the points span."""
    box = np.array(points, np.float64)
    center, radius = (box.max(axis=0) + box.min(axis=0)) / 2, (box.max(axis=0) - box.min(axis=0)) / 2
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    return np.asarray(center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), np.float64)
