"""Polygons as GeoJSON that QuPath reads: features with a class, a colour, an id and an area.

The names are those of QuPath's `QuPathTypeAdapters` (0.4 and later). Objects are detections: QuPath stays
responsive with hundreds of thousands of them, and with some thousands of annotations it does not.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from histoseg.chains import find_begins, join_ranges
from histoseg.colors import parse_color
from histoseg.rings import Polygons

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAD, TAIL = b'{"type":"FeatureCollection","features":[\n', b"\n]}\n"
SEPARATOR = b",\n"
AREA_NAME = "Area um^2"
# Names of objects are made from the name of the slide under this one (RFC 9562, version 5).
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "histoseg")


class FeatureText:
    """Writes polygons as features; every coordinate's text is made once."""

    def __init__(
        self,
        slide_name: str,
        m_size: tuple[int, int],
        l0_per_m: tuple[float, float],
        classes: list[tuple[str, str]],
    ) -> None:
        """Prepare the texts of coordinates and classes.

        Args:
            slide_name: What ids are made from, beside class and place: a rerun gives the same ids.
            m_size: Width and height in model pixels.
            l0_per_m: Level-0 pixels of one model pixel, along x and y.
            classes: Name and `#rrggbb` of each class.
        """
        # a file's name may be no text at all
        name = slide_name.encode("utf-8", "backslashreplace").decode()
        self._namespace = uuid.uuid5(_NAMESPACE, name).bytes
        self._x = _make_texts(m_size[0], l0_per_m[0], "[", ",")
        self._y = _make_texts(m_size[1], l0_per_m[1], "", "],")
        self._properties = [_describe_class(name, color) for name, color in classes]

    def iter_features(self, polygons: Polygons, um2_per_px: float) -> Iterator[bytes]:
        """Yield the text of each polygon; points are in halves of a model pixel."""
        rings = self._iter_rings(polygons)
        regions = zip(
            polygons.values.tolist(),
            polygons.corners.tolist(),
            polygons.counts.tolist(),
            (polygons.areas_px * um2_per_px).tolist(),
            strict=True,
        )
        for value, (x, y), count, area in regions:
            geometry = b"],[".join([next(rings) for _ in range(count)])
            yield (
                b'{"type":"Feature","id":"%s","geometry":{"type":"Polygon","coordinates":[[%s]]},'
                b'"properties":{%s%.12g}}}'
                % (self._make_id(value, x, y), geometry, self._properties[value], round(area, 3))
            )

    def _iter_rings(self, polygons: Polygons) -> Iterator[bytes]:
        """Yield the points of each ring, the first one again at the end."""
        begins, sizes = find_begins(polygons.sizes), polygons.sizes + 1
        order = join_ranges(begins, sizes)
        ends = np.cumsum(sizes)
        order[ends - 1] = begins
        x, y = polygons.points[order].T
        pairs = np.empty(len(order), [("x", self._x.dtype), ("y", self._y.dtype)])
        pairs["x"], pairs["y"] = self._x[x], self._y[y]
        lengths = np.char.str_len(pairs["x"]) + np.char.str_len(pairs["y"])
        text = pairs.tobytes().translate(None, b"\0")
        stops = np.append(0, np.cumsum(lengths))[np.append(0, ends)].tolist()
        for begin, end in pairwise(stops):
            yield text[begin : end - 1]

    def _make_id(self, value: int, x: int, y: int) -> bytes:
        """Return what `uuid.uuid5` does, in a third of the time."""
        name = b"%d/%d/%d" % (value, x, y)
        digest = hashlib.sha1(self._namespace + name, usedforsecurity=False).hexdigest()
        variant = "89ab"[int(digest[16], 16) & 3]
        text = f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
        return text.encode()


def _make_texts(m_length: int, l0_per_m: float, before: str, after: str) -> NDArray[np.bytes_]:
    """Return the level-0 coordinate of every half of a model pixel, with at most two decimals."""
    hundredths = np.rint(np.arange(2 * m_length + 1) * (l0_per_m * 50)).astype(np.int64)
    # ten digits hold any slide's coordinates, and `g` writes no trailing zeros
    return np.array([f"{before}{value / 100:.10g}{after}".encode() for value in hundredths.tolist()])


def _describe_class(name: str, color: str) -> bytes:
    properties = {
        "objectType": "detection",
        "classification": {"name": name, "color": parse_color(color)},
        "measurements": {AREA_NAME: 0},
    }
    return json.dumps(properties, separators=(",", ":"))[1:-3].encode()
