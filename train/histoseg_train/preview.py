"""A picture of what the network makes of a few held-out tiles, the same ones after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from histoseg.arrays import Labels, Pixels
from histoseg.atomic import write_whole
from histoseg.errors import OutputError
from histoseg_train.augment import AugmentOptions, draw_patch
from histoseg_train.contactsheet import choose_items, draw_outlines
from histoseg_train.images import Sample, encode_png
from histoseg_train.job import Job

TILES, DRAWS = 4, 16
GAP_PX, CAPTION_PX = 4, 20


def cut_tiles(job: Job, *, count: int = TILES) -> list[Sample]:
    """Return unchanged tiles of the patches' size from held-out images, of each source in turn.

    They depend on the job alone. Where nothing is held out, they are of training images that have a mask.
    """
    seed = job.fit.seed
    store = job.held_out if len(job.held_out) else job.training
    told = [index for index, item in enumerate(store.items) if item.mask is not None]
    chosen = choose_items(store.items, told, count, seed=seed)
    return [_cut_tile(store[index], size=job.patches.size, seed=seed) for index in chosen]


def write_preview(
    path: Path, tiles: Sequence[Sample], predict: Callable[[Pixels], Labels], *, job: Job, epoch: int
) -> None:
    """Draw every tile in a row: as it is, with the outlines of the truth, with those of the prediction.

    Args:
        path: A PNG file, which is replaced as a whole.
        tiles: What `cut_tiles` returned.
        predict: Returns the class indices of a tile.
        job: Names the colours of the classes.
        epoch: The number in the caption.

    Raises:
        OutputError: The file cannot be written.
    """
    rows = [_draw_row(tile, predict(tile.rgb), job.target.class_colors) for tile in tiles]
    sheet = np.concatenate([_draw_captions(rows[0].shape[1], epoch), *rows])
    try:
        with write_whole(path) as part:
            part.write_bytes(encode_png(sheet))
    except OSError as error:
        raise OutputError(f"{path}: cannot write the preview: {error}") from error


def _cut_tile(sample: Sample, *, size: int, seed: int) -> Sample:
    """Return the tile, of some at random, in which background and objects share the most evenly."""
    plain = replace(AugmentOptions().without_color(), turns=False, scale=1.0, elastic=0.0)
    rng = np.random.default_rng(seed)
    tiles = [draw_patch(sample, rng, size=size, foreground=1, options=plain) for _ in range(DRAWS)]
    return min(tiles, key=lambda tile: abs(float(np.mean(tile.labels > 0)) - 0.5))


def _draw_row(tile: Sample, predicted: Labels, colors: Sequence[str]) -> Pixels:
    cells = [tile.rgb, *(draw_outlines(tile.rgb, labels, colors) for labels in (tile.labels, predicted))]
    rest = ((0, GAP_PX), (0, GAP_PX), (0, 0))
    return np.concatenate([np.pad(cell, rest, constant_values=255) for cell in cells], axis=1)


def _draw_captions(width: int, epoch: int) -> Pixels:
    import cv2

    line = np.full((CAPTION_PX, width, 3), 255, np.uint8)
    for column, words in enumerate(("image", "truth", f"epoch {epoch}")):
        left = 2 + column * width // 3
        cv2.putText(
            line, words, (left, CAPTION_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
        )
    return line
