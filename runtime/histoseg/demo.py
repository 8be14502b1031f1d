"""A slide drawn like H&E, with known nuclei: for `histoseg-run --demo`, for tests and for parity tiles.

Stains are drawn as concentrations and turned into light by the Beer-Lambert law with the stain vectors of
M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
Nothing here is a real patient's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Labels, Mask, Pixels

SPACING_UM_PX = 0.5
DEMO_SIZE_PX = 4096
DEMO_SEED = 7

STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], np.float32)
"""Optical density of haematoxylin and eosin for red, green and blue."""

GLASS = np.array([244, 243, 246], np.float32)
TILE_PX = 256
STRIP_PX = 512
JPEG_QUALITY = 88


@dataclass(frozen=True)
class NucleusKind:
    """How one kind of nucleus looks; lengths are semi-axes in px at 0.5 um/px."""

    long: tuple[float, float]
    short: tuple[float, float]
    stain: tuple[float, float]
    """Haematoxylin concentration, from pale to dark."""


LYMPHOCYTE = NucleusKind((6.0, 7.5), (5.5, 7.0), (1.25, 1.7))
EPITHELIUM = NucleusKind((8.5, 12.0), (6.5, 9.0), (0.75, 1.15))
FIBROBLAST = NucleusKind((11.0, 17.0), (3.2, 4.8), (0.95, 1.35))


def draw_slide(size: int, seed: int) -> tuple[Pixels, Labels]:
    """Draw a square slide.

    Args:
        size: Width and height in px at 0.5 um/px, at least 64.
        seed: The same seed draws the same slide.

    Returns:
        RGB `(size, size, 3)` uint8, and its truth `(size, size)` uint8: 0 background, 1 nucleus.
    """
    rng = np.random.default_rng(seed)
    tissue = _draw_tissue(size, rng)
    epithelium, lumen = _draw_glands(size, rng, tissue)
    truth = np.zeros((size, size), np.uint8)
    stain = np.zeros((size, size), np.float32)
    _scatter_nuclei(rng, truth, stain, EPITHELIUM, epithelium & ~lumen, per_px=1 / 260)
    _scatter_nuclei(
        rng, truth, stain, LYMPHOCYTE, _draw_clusters(size, rng) & tissue & ~lumen, per_px=1 / 300
    )
    _scatter_nuclei(rng, truth, stain, FIBROBLAST, tissue & ~epithelium & ~lumen, per_px=1 / 2600)
    _scatter_nuclei(rng, truth, stain, LYMPHOCYTE, tissue & ~epithelium & ~lumen, per_px=1 / 7000)
    rgb = _develop(rng, stain, tissue & ~lumen, epithelium)
    return rgb, truth


def write_demo_slide(folder: Path, *, size: int = DEMO_SIZE_PX, seed: int = DEMO_SEED) -> tuple[Path, Path]:
    """Write `demo-slide.tif`, a tiled JPEG pyramid, and `demo-truth.png`, its mask; return both paths."""
    import cv2

    rgb, truth = draw_slide(size, seed)
    slide_path, truth_path = folder / "demo-slide.tif", folder / "demo-truth.png"
    write_pyramid(slide_path, rgb, SPACING_UM_PX)
    if not cv2.imwrite(str(truth_path), truth * np.uint8(255)):
        raise OSError(f"{truth_path} was not written")
    return slide_path, truth_path


def write_pyramid(path: Path, rgb: Pixels, spacing_um_px: float) -> None:
    """Write RGB as a tiled, JPEG-compressed pyramidal TIFF that OpenSlide opens."""
    import cv2
    import tifffile

    with tifffile.TiffWriter(path) as tif:
        level = 0
        while True:
            per_cm = 1e4 / (spacing_um_px * 2**level)
            tif.write(
                _iter_jpeg_tiles(rgb),
                shape=rgb.shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(2, 2),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
                software="histoseg",
            )
            if max(rgb.shape) <= 2 * TILE_PX:
                return
            size = ((rgb.shape[1] + 1) // 2, (rgb.shape[0] + 1) // 2)
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
            level += 1


def _iter_jpeg_tiles(rgb: Pixels) -> Iterator[bytes]:
    import cv2

    height, width = rgb.shape[:2]
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            part = rgb[y : y + TILE_PX, x : x + TILE_PX]
            pad = ((0, TILE_PX - part.shape[0]), (0, TILE_PX - part.shape[1]), (0, 0))
            bgr = np.pad(part, pad, mode="edge")[..., ::-1]
            yield cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _noise(rng: np.random.Generator, size: int, grain: float, *, stretch: float = 1.0) -> Floats:
    """Return smooth noise, `(size, size)`, zero mean and unit deviation, with blobs of about `grain` px."""
    import cv2

    rows, columns = max(4, int(size / grain)), max(4, int(size / (grain * stretch)))
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    smooth = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
    smooth -= smooth.mean()
    return smooth / max(float(smooth.std()), 1e-6)


def _bend(rng: np.random.Generator, straight: Floats) -> Floats:
    """Return a picture of horizontal fibres bent into waves."""
    import cv2

    size = straight.shape[0]
    side = np.arange(size, dtype=np.float32)
    x, y = side[None, :], side[:, None]
    across, along = (_noise(rng, size, 260) for _ in range(2))
    return np.asarray(
        cv2.remap(straight, x + 50 * along, y + 90 * across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT),
        np.float32,
    )


def _draw_tissue(size: int, rng: np.random.Generator) -> Mask:
    """Return where the section lies: one ragged piece in the middle of the glass."""
    side = np.arange(size, dtype=np.float32) / size - 0.5
    x, y = side[None, :], side[:, None]
    edge = 0.43 + 0.03 * _noise(rng, size, size / 6) + 0.004 * _noise(rng, size, max(8, size / 90))
    distance = np.maximum(np.abs(x), np.abs(y)) * 0.5 + np.hypot(x, y) * 0.5
    return np.asarray(distance < edge)


def _draw_glands(size: int, rng: np.random.Generator, tissue: Mask) -> tuple[Mask, Mask]:
    """Return epithelium and lumen of round glands, which lie where tissue is."""
    import cv2

    epithelium, lumen = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for _ in range(int(size * size / 110_000)):
        x, y = rng.integers(0, size, 2)
        if not tissue[y, x]:
            continue
        outer = rng.uniform(50, 150)
        ring = min(rng.uniform(34, 80), outer * 0.8)
        shape = _wobble(rng, outer, outer * rng.uniform(0.6, 1), roughness=0.08)
        for picture, scale in ((epithelium, 1.0), (lumen, 1 - ring / outer)):
            cv2.fillPoly(picture, [np.rint(shape * scale + (x, y)).astype(np.int32)], 1)
    return (epithelium > 0) & tissue, (lumen > 0) & tissue


def _draw_clusters(size: int, rng: np.random.Generator) -> Mask:
    """Return where lymphocytes crowd."""
    return _noise(rng, size, 400) + 0.3 * _noise(rng, size, 90) > 1.5


def _wobble(rng: np.random.Generator, long: float, short: float, *, roughness: float) -> Floats:
    """Return an ellipse with an uneven outline, turned at random: `(32, 2)` points around (0, 0)."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radius = np.ones(32)
    for wave in (2, 3, 4, 5):
        radius += roughness / wave * rng.standard_normal() * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    points = np.stack([long * radius * np.cos(angle), short * radius * np.sin(angle)], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(points @ rotation.T, np.float32)


def _scatter_nuclei(
    rng: np.random.Generator, truth: Labels, stain: Floats, kind: NucleusKind, where: Mask, *, per_px: float
) -> None:
    """Draw nuclei of one kind at random places of `where` that are still free."""
    import cv2

    size = truth.shape[0]
    for x, y in rng.uniform(0, size, (rng.poisson(size * size * per_px), 2)):
        if not where[int(y), int(x)]:
            continue
        outline = _wobble(rng, rng.uniform(*kind.long), rng.uniform(*kind.short), roughness=0.10)
        outline += np.array([x, y], np.float32)
        x0, y0 = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 2, 0)
        x1, y1 = np.ceil(outline.max(axis=0)).astype(int) + 3
        spot = truth[y0:y1, x0:x1]
        shape = np.zeros(spot.shape, np.uint8)
        fixed = np.rint((outline - np.array([x0, y0], np.float32)) * 16).astype(np.int32)  # 4 fractional bits
        cv2.fillPoly(shape, [fixed], 1, shift=4)
        square = np.ones((3, 3), np.uint8)
        if (spot & np.asarray(cv2.dilate(shape, square), np.uint8)).any():
            continue  # nuclei keep a pixel between them
        spot |= shape
        rim = shape - np.asarray(cv2.erode(shape, square, borderValue=0), np.uint8)
        dark = rng.uniform(*kind.stain)
        stain[y0:y1, x0:x1] += dark * (shape + 0.25 * rim.astype(np.float32))


def _develop(rng: np.random.Generator, nuclei: Floats, tissue: Mask, epithelium: Mask) -> Pixels:
    """Turn stain concentrations into RGB."""
    import cv2

    size = nuclei.shape[0]
    chromatin = 1 + 0.22 * _noise(rng, size, 2.5)
    body = cv2.GaussianBlur(tissue.astype(np.float32), (0, 0), 1.5)
    cells = cv2.GaussianBlur(epithelium.astype(np.float32), (0, 0), 3)
    fibres = _bend(rng, 0.14 * _noise(rng, size, 4, stretch=9) + 0.12 * _noise(rng, size, 30, stretch=3))
    haematoxylin = nuclei * chromatin + body * (0.10 + 0.14 * cells + 0.03 * _noise(rng, size, 7))
    eosin = (
        body * (0.55 + fibres + 0.10 * _noise(rng, size, size / 5) - 0.12 * cells) * (1 - 0.5 * (nuclei > 0))
    )
    stains = np.stack([haematoxylin, eosin], axis=-1).clip(0)
    stains = cv2.GaussianBlur(stains, (0, 0), 0.8)  # the lens
    rgb = np.empty((size, size, 3), np.uint8)
    for top in range(0, size, STRIP_PX):
        strip = stains[top : top + STRIP_PX]
        light = GLASS * np.exp(-strip @ STAINS)
        light += rng.standard_normal((*strip.shape[:2], 1), np.float32) * 1.5
        rgb[top : top + STRIP_PX] = np.rint(light).clip(0, 255)
    return rgb
