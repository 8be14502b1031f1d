"""What a model makes of images, as a picture: each as it is, with the true outlines, with the predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.colors import parse_color
from histoseg_train.contactsheet import draw_outlines

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Pixels
    from histoseg_train.images import SampleStore

CELL_PX, GAP_PX, LINE_PX = 512, 8, 22
LETTER_PX, BOX_PX = 11, 12
COLUMNS = ("image", "truth", "prediction")


def choose_images(dices: Sequence[float | None], count: int) -> list[int]:
    """Return the indices of up to `count` images from the lowest Dice to the highest, evenly over the ranks.

    Images without a Dice, which hold nothing and in which nothing was found, are left out where others are.
    """
    known = [index for index, dice in enumerate(dices) if dice is not None] or list(range(len(dices)))
    ranked = sorted(known, key=lambda index: dices[index] or 0)
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def draw_sheet(
    store: SampleStore,
    images: Sequence[dict[str, Any]],
    chosen: Iterable[int],
    *,
    predict: Callable[[Pixels], Labels],
    names: Sequence[str],
    colors: Sequence[str],
) -> Pixels:
    """Draw one row an image, below a line that tells which colour is which class.

    Args:
        store: The images and their truth.
        images: What the evaluation's document says of each.
        chosen: Indices of those to draw, from top to bottom.
        predict: Returns the class indices of an image.
        names: Of the classes.
        colors: `#rrggbb` of each class; the background, the first, gets no outline.

    Returns:
        RGB `(h, w, 3)`.
    """
    rows = []
    for index in chosen:
        sample, words = store[index], _caption(images[index])
        cells = [
            _draw_cell(sample.rgb, labels, colors)
            for labels in (np.zeros_like(sample.labels), sample.labels, predict(sample.rgb))
        ]
        rows += [_write_line([words], sum(cell.shape[1] for cell in cells)), np.concatenate(cells, axis=1)]
    width = rows[0].shape[1]
    return np.concatenate([_write_legend(names[1:], colors[1:], width), _write_line(COLUMNS, width), *rows])


def _caption(image: dict[str, Any]) -> str:
    dice = "no foreground" if image["dice"] is None else f"Dice {image['dice']:.3f}"
    return f"{dice}   {image['source']}  {image['image']}  {image['width_px']} x {image['height_px']} px"


def _draw_cell(rgb: Pixels, labels: Labels, colors: Sequence[str]) -> Pixels:
    """Return an image with outlines, fitted into a cell; outlines are drawn last, so that they stay thin."""
    import cv2

    factor = CELL_PX / max(labels.shape)
    size = (max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor)))
    filter_ = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    fitted = np.asarray(cv2.resize(rgb, size, interpolation=filter_), np.uint8)
    classes = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    cell = np.full((size[1] + GAP_PX, CELL_PX + GAP_PX, 3), 255, np.uint8)
    cell[: size[1], : size[0]] = draw_outlines(fitted, classes, colors)
    if factor >= 2:  # outlines of large pixels may be twice as wide
        cell[: size[1], : size[0]] = draw_outlines(cell[: size[1], : size[0]], _peel(classes), colors)
    return cell


def _peel(labels: Labels) -> Labels:
    """Return class indices without the outermost pixels of every class."""
    import cv2

    square = np.ones((3, 3), np.uint8)
    is_inner = cv2.erode(labels, square) == cv2.dilate(labels, square)
    return np.where(is_inner, labels, 0).astype(np.uint8)


def _write_legend(names: Sequence[str], colors: Sequence[str], width: int) -> Pixels:
    line, left = np.full((LINE_PX, width, 3), 255, np.uint8), 2
    for name, color in zip(names, colors, strict=True):
        line[5 : 5 + BOX_PX, left : left + BOX_PX] = parse_color(color)
        _write(line, name, left + BOX_PX + 4)
        left += BOX_PX + LETTER_PX * (len(name) + 3)
    return line


def _write_line(words: Sequence[str], width: int) -> Pixels:
    line = np.full((LINE_PX, width, 3), 255, np.uint8)
    for column, word in enumerate(words):
        _write(line, word, 2 + column * width // len(words))
    return line


def _write(line: Pixels, words: str, left: int) -> None:
    import cv2

    # OpenCV's own letters are ASCII alone
    text = words.encode("ascii", "replace").decode()
    cv2.putText(line, text, (left, LINE_PX - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
