"""Tiles to calibrate and judge on, with what is true of them where that is known.

They come from a slide, an image, a folder of images, or a folder with `images/` and `masks/`: the last has
truth, and Dice is then measured against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.errors import DataError, SlideError
from histoseg.scale import ScaledSlide, plan_scale
from histoseg.slide import open_slide
from histoseg.tissue import find_tissue
from histoseg.truth import NO_CLASS
from histoseg_export.tiles import CANDIDATES, SUFFIXES, open_source
from histoseg_train.dataset import list_items
from histoseg_train.images import SampleStore

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Pixels
    from histoseg.card import ModelCard

    Cut = tuple[Pixels, Labels | None]
    Size = tuple[int, int]

# a picture in these is never a slide; a TIFF may be either
_PICTURES = frozenset(SUFFIXES) - {".tif", ".tiff"}


@dataclass(frozen=True)
class TileSet:
    """Tiles of one size at the model's um/px."""

    tiles: Pixels
    """`(n, height, width, 3)` uint8 RGB."""
    truth: Labels | None
    """`(n, height, width)` class indices, `NO_CLASS` where nothing is known; `None` without masks."""
    words: str
    """Where they come from."""


def open_tile_set(
    source: Path | None, card: ModelCard, count: int, *, seed: int, size: tuple[int, int] | None = None
) -> TileSet:
    """Cut tiles from what a caller names.

    Args:
        source: A slide, an image, a folder of images, or a folder with `images/` and `masks/`. Images are
            taken to be at the model's um/px; `None` is the demo slide.
        card: The model's tile, um/px and classes.
        count: How many tiles.
        seed: Decides the places.
        size: Width and height of the tiles, where they are not the model's.

    Raises:
        DataError: There is nothing to cut from, it cannot be read, or a mask holds a value that is no class.
        SlideError: The slide is damaged, or states no um/px, or is too coarse for the model.
    """
    rng, size = np.random.default_rng(seed), size or card.patch_size_pixels
    if source is not None and (source / "images").is_dir() and (source / "masks").is_dir():
        return _cut_samples(source, card, size, count, rng)
    if source is not None and source.is_file() and source.suffix.lower() not in _PICTURES:
        try:
            return _cut_slide(source, card, size, count, rng)
        except SlideError:
            if source.suffix.lower() not in SUFFIXES:
                raise
    images, words = open_source(source, size)
    order = rng.permutation(len(images))
    chosen = [images[order[index % len(order)]] for index in range(count)]
    tiles = np.stack([_cut(image, None, size, rng)[0] for image in chosen])
    return TileSet(tiles, None, words)


def _cut_samples(folder: Path, card: ModelCard, size: Size, count: int, rng: np.random.Generator) -> TileSet:
    items = list_items(folder).items
    store = SampleStore(
        items,
        classes=len(card.class_names),
        spacing_um_px=card.spacing_um_px,
        colors=card.class_colors,
        equalization=card.input.equalization,
    )
    chosen = [store[int(index)] for index in rng.permutation(len(store))[:count]]
    samples = [chosen[index % len(chosen)] for index in range(count)]
    cuts = [_cut(sample.rgb, sample.labels, size, rng) for sample in samples]
    truth = np.stack([labels for _, labels in cuts if labels is not None])
    words = f"{folder.name}: {len(chosen)} images with masks"
    return TileSet(np.stack([tile for tile, _ in cuts]), truth, words)


def _cut_slide(path: Path, card: ModelCard, size: Size, count: int, rng: np.random.Generator) -> TileSet:
    width, height = size
    with open_slide(path, color_space=card.input.color_space) as slide:
        scale = plan_scale(slide, card.spacing_um_px, tolerance=card.spacing_tolerance)
        scaled, mask = ScaledSlide(slide, scale, card.input.equalization), find_tissue(slide).mask
        rows, columns = np.nonzero(mask)
        if not rows.size:
            raise DataError(f"{path}: no tissue found on it; give another slide, or a folder of images")
        tiles = np.empty((count, height, width, 3), np.uint8)
        for index in range(count):
            cuts = []
            for choice in rng.integers(0, rows.size, CANDIDATES):
                m_x = _centre(columns[choice], mask.shape[1], scaled.m_size[0], width)
                m_y = _centre(rows[choice], mask.shape[0], scaled.m_size[1], height)
                cuts.append(scaled.read(m_x, m_y, width, height))
            tiles[index] = min(cuts, key=_brightness)
    return TileSet(tiles, None, f"{path.name}: tissue, {count} places")


def _centre(place: int, places: int, m_length: int, side: int) -> int:
    """Return where a tile begins whose middle is at a pixel of the mask, inside the slide where it fits."""
    middle = int((place + 0.5) * m_length / places)
    return max(0, min(middle - side // 2, m_length - side))


def _cut(image: Pixels, labels: Labels | None, tile: tuple[int, int], rng: np.random.Generator) -> Cut:
    """Cut a tile at a random place: of a few the darkest, which is mostly tissue."""
    width, height = tile
    missing = [(0, max(0, height - image.shape[0])), (0, max(0, width - image.shape[1]))]
    image = np.pad(image, [*missing, (0, 0)], mode="symmetric")
    if labels is not None:
        labels = np.pad(labels, missing, constant_values=NO_CLASS)
    places = rng.integers(0, (image.shape[0] - height + 1, image.shape[1] - width + 1), (CANDIDATES, 2))
    windows = [np.s_[y : y + height, x : x + width] for y, x in places]
    window = min(windows, key=lambda window: _brightness(image[window]))
    return image[window], None if labels is None else labels[window]


def _brightness(pixels: Pixels) -> float:
    return float(pixels.mean())
