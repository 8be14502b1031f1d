"""Regions that a person drew: QuPath GeoJSON and ImageScope XML, in level-0 pixels of the slide.

Files come from strangers: XML with entities is refused (defusedxml), nothing is resolved or fetched. They are
read whole, and corners become arrays as they are parsed: 16 bytes each, beside the text itself.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import AnnotationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ring = NDArray[np.float64]
    Rings = tuple[Ring, ...]

GEOJSON_SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
XML_SUFFIXES = (".xml",)

# An annotation file may hold this many bytes, unpacked.
MAX_BYTES, READ_BYTES = 2 << 30, 1 << 20
# No slide is this wide: larger coordinates are damage.
FARTHEST_PX = 1e9

# Of ImageScope's regions, 0 freehand, 1 rectangle and 2 ellipse have an inside; arrows and rulers do not.
_ELLIPSE, _AREAS = "2", ("0", "1", "2")
_ELLIPSE_POINTS = 128

# QuPath's objects that hold areas and are none: cores of a tissue array, the whole slide.
_FRAMES = ("tmaCore", "TMACoreObject", "root", "PathRootObject")


@dataclass(frozen=True)
class Region:
    """A drawn area: where an odd number of its rings go around."""

    class_name: str | None
    rings: Rings
    """`(n, 2)` float64 level-0 x and y of each ring, outer ones and holes alike; at least one ring."""
    erases: bool = False
    """The region is cut out of the others of its layer (ImageScope's negative regions)."""
    layer: int = 0
    """Regions of one layer follow each other."""
    frames: bool = False
    """The region holds areas and belongs to no class (cores of a tissue array)."""


def is_annotation_file(path: Path) -> bool:
    """Tell by its name whether a file holds annotations."""
    return path.name.lower().endswith(GEOJSON_SUFFIXES + XML_SUFFIXES)


def load_regions(path: Path) -> tuple[Region, ...]:
    """Read the areas of an annotation file, in drawing order; points, lines and empty areas are left out.

    GeoJSON is a FeatureCollection, a list of Features or one Feature, as QuPath writes them (its
    `PathObjectTypeAdapters`): the class is the `name` of `classification`, or its `names` joined by a colon;
    missing cores of a tissue array are left out; child objects follow their parent.

    Raises:
        AnnotationError: The file cannot be read, is malformed, or holds no area.
    """
    is_xml = path.name.lower().endswith(XML_SUFFIXES)
    data, kind = _read_bytes(path), "ImageScope XML" if is_xml else "GeoJSON"
    try:
        regions = tuple(_parse_xml(data) if is_xml else _parse_geojson(data))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        words = " ".join(str(error).split())[:160]
        raise AnnotationError(
            f"{path}: is no {kind} that can be used ({type(error).__name__}: {words}); export it again"
        ) from error
    if not regions:
        wanted = "Regions of ImageScope" if is_xml else "Polygons or MultiPolygons"
        raise AnnotationError(f"{path}: holds no area, expected {wanted}")
    return regions


def _read_bytes(path: Path) -> bytearray:
    opened = gzip.open if path.name.lower().endswith(".gz") else Path.open
    data = bytearray()
    try:
        with opened(path, "rb") as file:
            while len(data) <= MAX_BYTES and (part := file.read(READ_BYTES)):
                data += part
    except FileNotFoundError as error:
        raise AnnotationError(
            f"{path}: no such file, expected GeoJSON or ImageScope XML; check the path"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"{path}: cannot be read ({error})") from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"{path}: holds more than {MAX_BYTES >> 30} GiB, expected less; leave out measurements, or write "
            "a mask as a tiled TIFF"
        )
    return data


@dataclass(frozen=True)
class _Areas:
    """What a GeoJSON geometry becomes: the rings of each polygon."""

    polygons: tuple[Rings, ...]


@dataclass(frozen=True)
class _Drawn:
    """What a GeoJSON feature becomes."""

    regions: tuple[Region, ...]


def _parse_geojson(data: bytearray) -> Iterator[Region]:
    document = json.loads(data, object_hook=_shrink)
    features = document.get("features") if isinstance(document, dict) else document
    if isinstance(features, _Drawn | _Areas):
        features = [features]
    if not isinstance(features, list):
        raise ValueError("found neither a FeatureCollection, nor Features")
    for feature in features:
        if isinstance(feature, _Areas):
            yield from _make_regions(feature, {})
        elif isinstance(feature, _Drawn):
            yield from feature.regions
        else:
            raise ValueError(f"found {json.dumps(feature, default=str)[:60]}, expected a Feature")


def _shrink(item: dict[str, Any]) -> Any:
    """Replace features and geometries by their areas as soon as they are parsed, innermost first."""
    if "geometry" in item:
        return _Drawn(tuple(_read_feature(item)))
    kind = item.get("type")
    if kind == "Polygon" and "coordinates" in item:
        return _Areas(_as_polygons([item["coordinates"]]))
    if kind == "MultiPolygon" and "coordinates" in item:
        return _Areas(_as_polygons(item["coordinates"]))
    if kind == "GeometryCollection" and "geometries" in item:
        parts = (part for part in item["geometries"] if isinstance(part, _Areas))
        return _Areas(tuple(rings for part in parts for rings in part.polygons))
    return item


def _read_feature(feature: dict[str, Any]) -> Iterator[Region]:
    properties = feature.get("properties") or {}
    if isinstance(feature["geometry"], _Areas) and properties.get("isMissing") is not True:
        kind = properties.get("objectType") or feature.get("id")
        yield from _make_regions(feature["geometry"], properties, frames=kind in _FRAMES)
    for child in properties.get("childObjects") or properties.get("children") or ():
        if isinstance(child, _Drawn):
            yield from child.regions


def _make_regions(areas: _Areas, properties: dict[str, Any], *, frames: bool = False) -> Iterator[Region]:
    found = properties.get("classification") or {}
    name = found if isinstance(found, str) else found.get("name") or ": ".join(found.get("names") or ())
    if not isinstance(name, str):
        raise ValueError(f"a class is called {name!r}, expected text")
    for rings in areas.polygons:
        yield Region(name or None, rings, frames=frames)


def _as_polygons(polygons: list[Any]) -> tuple[Rings, ...]:
    """Return the rings of each polygon, without empty ones."""
    filled = (tuple(_as_ring(ring) for ring in rings if len(ring)) for rings in polygons)
    return tuple(rings for rings in filled if rings)


def _parse_xml(data: bytearray) -> Iterator[Region]:
    from xml.etree.ElementTree import ParseError

    from defusedxml import ElementTree

    waiting: list[tuple[str | None, Ring, bool]] = []
    layer = 0
    try:
        for _, element in ElementTree.iterparse(io.BytesIO(data), events=("end",)):
            if element.tag == "Region":
                waiting += _read_xml_region(element)
                element.clear()  # thousands of vertices
            elif element.tag == "Annotation":
                name = element.get("Name") or None
                yield from (Region(text or name, (ring,), erases, layer) for text, ring, erases in waiting)
                waiting.clear()
                layer += 1
    except ParseError as error:
        raise ValueError(str(error)) from error


def _read_xml_region(region: Any) -> Iterator[tuple[str | None, Ring, bool]]:
    kind = region.get("Type", "0")
    if kind not in _AREAS:
        return
    points = [(float(v.get("X", "")), float(v.get("Y", ""))) for v in region.iter("Vertex")]
    if len(points) < 2 + (kind != _ELLIPSE):
        return  # a click without an area: MoNuSeg's own files hold some
    ring = _as_ellipse(_as_ring(points, least=2)) if kind == _ELLIPSE else _as_ring(points)
    yield region.get("Text"), ring, region.get("NegativeROA") == "1"


def _as_ring(points: Any, *, least: int = 3) -> Ring:
    ring = _as_array(points)
    if ring.ndim == 0:  # some points have a z
        ring = _as_array([point[:2] for point in points])
    if ring.ndim != 2 or len(ring) < least or ring.shape[1] < 2 or ring.dtype.kind not in "iuf":
        raise ValueError(f"a ring holds {str(points)[:60]}, expected at least {least} pairs of numbers")
    ring = ring[:, :2].astype(np.float64)
    if not (np.abs(ring) < FARTHEST_PX).all():
        raise ValueError(f"a ring holds {np.abs(ring).max()}, expected level-0 pixels")
    return ring


def _as_array(points: Any) -> NDArray[Any]:
    """Return points as an array; one of no dimensions where some are longer than others."""
    try:
        return np.array(points)
    except ValueError:
        return np.array(None)


def _as_ellipse(box: Ring) -> Ring:
    """Return the ellipse inside the box that the points span."""
    center, radius = (box.max(axis=0) + box.min(axis=0)) / 2, (box.max(axis=0) - box.min(axis=0)) / 2
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    return np.asarray(center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), np.float64)
