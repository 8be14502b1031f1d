"""A picture of what a network sees in training: images, and patches drawn from them, with class outlines."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from histoseg.colors import parse_color
from histoseg_train.augment import draw_patch
from histoseg_train.images import Sample, SampleStore
from histoseg_train.job import PatchOptions

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Pixels
    from histoseg_train.dataset import Item

CELL_PX, GAP_PX, CAPTION_PX = 256, 8, 20


def choose_items(items: Sequence[Item], among: Iterable[int], count: int, *, seed: int) -> list[int]:
    """Return up to `count` of some indices of items, of each source in turn, at random within a source."""
    queues: dict[str, list[int]] = {}
    for index in among:
        queues.setdefault(items[index].source, []).append(index)
    for source, queue in queues.items():
        random.Random(f"{seed}/{source}").shuffle(queue)  # noqa: S311
    turns = max(map(len, queues.values()), default=0)
    chosen = [queue[turn] for turn in range(turns) for queue in queues.values() if turn < len(queue)]
    return sorted(chosen[:count])


def draw_samples(
    store: SampleStore, chosen: Sequence[int], options: PatchOptions, *, draws: int, seed: int
) -> list[list[Sample]]:
    """Return `draws` random patches of each chosen image, as training would cut and change them."""
    looks = store.measure_looks() if options.augment.restain else ()
    return [
        [
            draw_patch(
                store[index],
                np.random.default_rng((seed, index, draw)),
                size=options.size,
                foreground=options.foreground,
                options=options.augment,
                looks=looks,
            )
            for draw in range(draws)
        ]
        for index in chosen
    ]


def draw_sheet(
    store: SampleStore, chosen: Sequence[int], drawn: Sequence[Sequence[Sample]], colors: Sequence[str]
) -> Pixels:
    """Draw a contact sheet: one row an image, the whole image first and then its patches.

    Args:
        store: The images.
        chosen: Indices of those to show.
        drawn: The patches of each, equally many.
        colors: `#rrggbb` of each class; the background, the first, gets no outline.

    Returns:
        RGB `(h, w, 3)`.
    """
    rows = []
    for index, patches in zip(chosen, drawn, strict=True):
        item = store.items[index]
        cells = [_draw_cell(sample, colors) for sample in (store[index], *patches)]
        rows.append(_caption(f"{item.source}  {item.stem}{'  (held out)' if item.held_out else ''}", cells))
    return np.concatenate(rows)


def draw_outlines(rgb: Pixels, labels: Labels, colors: Sequence[str]) -> Pixels:
    """Return `rgb` `(h, w, 3)` with the outermost pixels of every class in its colour."""
    import cv2

    outlined = rgb.copy()
    rim = cv2.morphologyEx(labels, cv2.MORPH_ERODE, np.ones((3, 3), np.uint8)) != labels
    rim |= cv2.morphologyEx(labels, cv2.MORPH_DILATE, np.ones((3, 3), np.uint8)) != labels
    for index, color in enumerate(colors[1:], start=1):
        outlined[rim & (labels == index)] = parse_color(color)
    return outlined


def _draw_cell(sample: Sample, colors: Sequence[str]) -> Pixels:
    """Return a sample with outlines, shrunk where it is too large, in the middle of a cell."""
    import cv2

    rgb, labels = sample.rgb, sample.labels
    factor = CELL_PX / max(labels.shape)
    if factor < 1:
        size = (max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    cell = np.full((CELL_PX + GAP_PX, CELL_PX + GAP_PX, 3), 255, np.uint8)
    top, left = (CELL_PX - labels.shape[0]) // 2, (CELL_PX - labels.shape[1]) // 2
    cell[top : top + labels.shape[0], left : left + labels.shape[1]] = draw_outlines(rgb, labels, colors)
    return cell


def _caption(text: str, cells: Sequence[Pixels]) -> Pixels:
    import cv2

    row = np.concatenate(cells, axis=1)
    line = np.full((CAPTION_PX, row.shape[1], 3), 255, np.uint8)
    # OpenCV's own letters are ASCII alone
    words = text.encode("ascii", "replace").decode()
    cv2.putText(line, words, (2, CAPTION_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([line, row])
