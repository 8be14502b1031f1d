"""Tiles of tissue to prove and measure a model on: a caller's images, or the demo slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.demo import draw_slide
from histoseg.errors import DataError

if TYPE_CHECKING:
    from histoseg.arrays import Pixels

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
SLIDE_SEED = 7
CANDIDATES = 3
MAX_IMAGES = 64


def open_source(source: Path | None, tile: tuple[int, int]) -> tuple[list[Pixels], str]:
    """Return images to cut tiles from, and words that say what they are.

    Args:
        source: An image, or a folder of images; the demo slide when `None`.
        tile: Width and height of the tiles; a demo slide is drawn a few times as large.

    Raises:
        DataError: There is no image, or one cannot be read.
    """
    if source is not None:
        images = read_images(source)
        return images, f"{source.name}: {len(images)} image{'s' if len(images) > 1 else ''}"
    size = min(max(4 * max(tile), 512), max(2048, 2 * max(tile)))
    return [draw_slide(size, SLIDE_SEED)[0]], f"demo slide, {size} px, seed {SLIDE_SEED}"


def read_images(source: Path) -> list[Pixels]:
    """Read one image, or the images of a folder (evenly chosen where there are many), as uint8 RGB.

    Raises:
        DataError: There is no image, or one cannot be read.
    """
    import cv2

    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    else:
        paths = [source]
    if not paths:
        raise DataError(f"{source}: holds no images, expected some of {', '.join(SUFFIXES)}")
    images = []
    for path in paths[:: -(-len(paths) // MAX_IMAGES)]:
        values = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
        if values is None:
            raise DataError(
                f"{path}: cannot be read as an image; expected {', '.join(SUFFIXES)} or a folder of them"
            )
        images.append(np.ascontiguousarray(values[..., ::-1], np.uint8))
    return images
