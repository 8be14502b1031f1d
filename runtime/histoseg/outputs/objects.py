"""`objects.geojson.gz`: every region of a class as a polygon, for QuPath.

Regions are traced along the edges of pixels as bands arrive, and wait in a temporary file: where they have
more vertices than a file may hold, the smallest are left out, over the whole slide alike, and which ones that
is comes out at the end.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from histoseg.errors import OutputError
from histoseg.outputs.geojson import HEAD, SEPARATOR, TAIL, FeatureText
from histoseg.outputs.rows import RowBlocks
from histoseg.rings import Polygons, double_points, simplify_polygons
from histoseg.tracing import MAX_BLOCK_ROWS, RegionTracer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Mask
    from histoseg.card import ModelCard
    from histoseg.scale import Scale

FILE_NAME = "objects.geojson.gz"
# Viewers take long to open more than the first; the second is too much for them.
MANY_VERTICES, MAX_VERTICES = 1_000_000, 10_000_000
# What is traced at once: enough that arrays are long, and little enough that noise fits into memory. What is
# open costs time in every block, however low.
BLOCK_PX, BLOCK_ROWS = 1 << 18, 24
# A quarter fewer bytes than the fastest, in a third more time; the usual 6 takes three times as long.
GZIP_LEVEL = 4
# Steps of area for each doubling, by which the smallest regions are told from the others.
STEPS = 16


class Objects:
    """Writes `objects.geojson.gz` from bands of labels. A context manager: leaving it drops what waits."""

    def __init__(
        self,
        path: Path,
        slide_name: str,
        scale: Scale,
        card: ModelCard,
        *,
        min_area_um2: float = 0,
        simplify: bool = True,
        max_vertices: int = MAX_VERTICES,
    ) -> None:
        """Prepare to write.

        Args:
            path: The file; it appears when the objects are closed.
            slide_name: What ids are made from, beside class and place.
            scale: Where model pixels lie on level 0.
            card: Classes, their colours, and which of them is background and makes no objects.
            min_area_um2: Smaller regions are left out.
            simplify: Cut the corners of steps, by at most half a model pixel.
            max_vertices: Where the file would hold more, the smallest regions are left out.
        """
        self._path, self._slide_name, self._scale, self._card = path, slide_name, scale, card
        self._min_area_um2, self._simplify, self._max_vertices = min_area_um2, simplify, max_vertices
        self._um2_per_px = scale.spacing_um_px[0] * scale.spacing_um_px[1]
        self._blocks = RowBlocks(min(max(BLOCK_ROWS, BLOCK_PX // scale.m_size[0]), MAX_BLOCK_ROWS))
        self._tracer = RegionTracer(scale.m_size[0], card.background_index)
        self._spool = _Spool(path.parent)
        self._limit = _Limit(max_vertices)
        self._too_small = 0
        self._counts = np.zeros(len(card.class_names), np.int64)
        self._vertices = 0

    def __enter__(self) -> Self:
        """Return the objects themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what waits."""
        self._spool.drop()

    def add(self, m_y: int, labels: Labels) -> None:
        """Take the next rows."""
        del m_y  # bands come in order
        for block in self._blocks.push(labels):
            self._store(self._tracer.add(block))

    def close(self) -> None:
        """Write the file.

        Raises:
            OutputError: The file cannot be written.
        """
        rest = self._blocks.rest()
        if rest is not None:
            self._store(self._tracer.add(rest))
        self._store(self._tracer.close())
        try:
            self._write()
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot write the objects ({error}); free space or choose another -o"
            ) from error

    def report(self) -> dict[str, Any]:
        """Return how many objects of each class were written and left out; complete once closed."""
        names, background = self._card.class_names, self._card.background_index
        return {
            "count": int(self._counts.sum()),
            "vertices": self._vertices,
            "classes": [
                {"name": name, "count": int(count)}
                for index, (name, count) in enumerate(zip(names, self._counts, strict=True))
                if index != background
            ],
            "simplified": self._simplify,
            "min_area_um2": self._min_area_um2,
            "left_out": {
                "under_min_area": self._too_small,
                "over_max_vertices": self._limit.regions - int(self._counts.sum()),
            },
            "cut": self._tracer.cut_count,
            "note": self._note(),
        }

    def _store(self, batches: list[Polygons]) -> None:
        """Put the regions aside that may be written."""
        for polygons in batches:
            self._store_batch(polygons)

    def _store_batch(self, polygons: Polygons) -> None:
        large = polygons.areas_px * self._um2_per_px >= self._min_area_um2
        self._too_small += int(np.count_nonzero(~large))
        polygons = polygons.select(large)
        polygons = simplify_polygons(polygons) if self._simplify else double_points(polygons)
        self._limit.count(polygons)
        self._spool.add(polygons.select(self._limit.choose(polygons)))

    def _write(self) -> None:
        scale, card = self._scale, self._card
        classes = list(zip(card.class_names, card.class_colors, strict=True))
        text = FeatureText(self._slide_name, scale.m_size, scale.l0_per_m, classes)
        # without a name and a time, the same objects give the same bytes
        with (
            self._path.open("wb") as file,
            gzip.GzipFile("", "wb", GZIP_LEVEL, fileobj=file, mtime=0) as packed,
        ):
            packed.write(HEAD)
            separator = b""
            for polygons in self._spool.iter_batches():
                chosen = polygons.select(self._limit.choose(polygons))
                if not len(chosen.values):
                    continue
                features = text.iter_features(chosen, self._um2_per_px)
                packed.write(separator + SEPARATOR.join(features))
                separator = SEPARATOR
                self._counts += np.bincount(chosen.values, minlength=len(self._counts))
                self._vertices += int(chosen.sizes.sum())
            packed.write(TAIL)

    def _note(self) -> str | None:
        """Say what a person should know about a file of many vertices."""
        limit, left_out = self._limit, self._limit.regions - int(self._counts.sum())
        if limit.vertices <= min(MANY_VERTICES, limit.most):
            return None
        found = f"the objects have {limit.vertices:,} vertices, expected at most "
        advice = "; leave small ones out with --min-area-um2, or run a part of the slide with --roi"
        if not left_out:
            return f"{found}{MANY_VERTICES:,}: viewers are slow to open them{advice}"
        least = limit.least_area_px * self._um2_per_px
        return (
            f"{found}{limit.most:,}: {left_out:,} objects are left out, all under {least:.4g} um2 and any "
            f"that does not fit alone{advice}"
        )


class _Limit:
    """Decides which regions fit under a number of vertices: the largest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.regions = 0
        self.vertices = 0
        self._by_step = np.zeros(STEPS * 64, np.int64)
        self._least = 0

    @property
    def least_area_px(self) -> float:
        """Regions smaller than this are not chosen."""
        return float(2 ** (self._least / STEPS))

    def count(self, polygons: Polygons) -> None:
        """Take regions into account; the least area only grows."""
        vertices = polygons.vertices
        self.regions += len(vertices)
        self.vertices += int(vertices.sum())
        # one that does not fit alone must not displace all others
        fits = vertices <= self.most
        np.add.at(self._by_step, _find_steps(polygons)[fits], vertices[fits])
        self._least = int(np.argmax(np.cumsum(self._by_step[::-1])[::-1] <= self.most))

    def choose(self, polygons: Polygons) -> Mask:
        """Return which regions fit, as far as one can tell by now."""
        return (polygons.vertices <= self.most) & (_find_steps(polygons) >= self._least)


class _Spool:
    """Batches of regions in a temporary file."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".objects-")  # noqa: SIM115
        self._count = 0

    def add(self, polygons: Polygons) -> None:
        if len(polygons.values):
            self._count += 1
            for field in fields(polygons):
                np.save(self._file, getattr(polygons, field.name), allow_pickle=False)

    def iter_batches(self) -> Iterator[Polygons]:
        """Yield the batches in order."""
        self._file.seek(0)
        for _ in range(self._count):
            yield Polygons(*(np.load(self._file, allow_pickle=False) for _ in fields(Polygons)))

    def drop(self) -> None:
        self._file.close()


def _find_steps(polygons: Polygons) -> NDArray[np.int64]:
    """Return the step of area of each region."""
    steps: NDArray[np.int64] = np.floor(np.log2(polygons.areas_px) * STEPS).astype(np.int64)
    return steps
