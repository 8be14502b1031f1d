"""Reading an image with its mask at the model's um/px, and refusing what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoseg.equalize import Equalization, equalize
from histoseg.errors import DataError
from histoseg_train.dataset import Item
from histoseg_train.looks import Look, Looks, measure_look
from histoseg_train.maskfile import MaskReader
from histoseg_train.preprocess import dilate_labels

CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Sample:
    """An image and its mask at the model's um/px."""

    rgb: NDArray[np.uint8]
    """`(h, w, 3)`."""
    labels: NDArray[np.uint8]
    """`(h, w)` class indices; all 0 where the image has no mask."""
    soft_labels: NDArray[np.uint8] | None = None
    """`(classes, h, w)`: how far each pixel is of each class, in 255ths; where there are teachers."""
    look: Look | None = None
    """Of the image, where it was measured."""


def read_sample(item: Item, masks: MaskReader, *, spacing_um_px: float) -> Sample:
    """Read and resample one image with its mask.

    Args:
        item: Which.
        masks: Reads the mask.
        spacing_um_px: Wanted um/px.

    Raises:
        DataError: A file cannot be decoded, the sizes differ, or the mask holds a value that is no class.
    """
    rgb = decode_rgb(item.image)
    labels = np.zeros(rgb.shape[:2], np.uint8) if item.mask is None else masks.read(item)
    if rgb.shape[:2] != labels.shape:
        raise DataError(
            f"{item.mask}: {labels.shape[1]}x{labels.shape[0]} pixels, "
            f"expected {rgb.shape[1]}x{rgb.shape[0]} like {item.image.name}"
        )
    factor = 1.0 if item.spacing_um_px is None else item.spacing_um_px / spacing_um_px
    labels = resample_labels(labels, factor, classes=masks.classes)
    return Sample(resample_rgb(rgb, factor), dilate_labels(labels, item.dilate_um / spacing_um_px))


def resample_rgb(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Return `rgb` `(h, w, 3)` with its size times `factor`: area filter to shrink, cubic to enlarge."""
    import cv2

    size = _scaled_size(rgb, factor)
    if size == (rgb.shape[1], rgb.shape[0]):
        return rgb
    filter_ = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(rgb, size, interpolation=filter_), np.uint8)


def resample_labels(labels: NDArray[np.uint8], factor: float, *, classes: int) -> NDArray[np.uint8]:
    """Return class indices `(h, w)` with their size times `factor`, each pixel's most frequent class."""
    import cv2

    size = _scaled_size(labels, factor)
    if size == (labels.shape[1], labels.shape[0]):
        return labels
    filter_ = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    cover = [
        cv2.resize((labels == c).astype(np.float32), size, interpolation=filter_) for c in range(classes)
    ]
    return np.argmax(cover, axis=0).astype(np.uint8)


class SampleStore:
    """Samples by index, read when first needed and kept as long as they fit into memory."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        classes: int,
        spacing_um_px: float,
        colors: Sequence[str] = (),
        equalization: Equalization | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Prepare to read.

        Args:
            items: What to read.
            classes: Number of classes.
            spacing_um_px: Wanted um/px.
            colors: Of the classes; masks in colour are read by them.
            equalization: What is done to images at the wanted um/px.
            cache_bytes: Memory for samples that are kept.
        """
        self.items = tuple(items)
        self._masks = MaskReader(self.items, classes=classes, colors=colors)
        self._spacing_um_px = spacing_um_px
        self._equalization = equalization
        self._cache_bytes = cache_bytes
        self._taught: dict[int, NDArray[np.uint8]] = {}
        self._taught_labels: dict[int, NDArray[np.uint8]] = {}
        self._looks: dict[int, Look] = {}
        self._kept: dict[int, Sample] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`; raises what `read_sample` raises."""
        sample = self._read(index)
        labels = self._taught_labels.get(index, sample.labels)
        return Sample(sample.rgb, labels, self._taught.get(index), self._looks.get(index))

    def teach(self, index: int, soft_labels: NDArray[np.uint8]) -> None:
        """Give sample `index` soft labels `(classes, h, w)`, and without a mask labels from them."""
        self._taught[index] = soft_labels
        if self.items[index].mask is None:
            self._taught_labels[index] = np.argmax(soft_labels, axis=0).astype(np.uint8)

    def measure_looks(self) -> Looks:
        """Return the looks of each source's images but held-out ones; samples have them from now on."""
        looks: dict[str, list[Look]] = {}
        for index, item in enumerate(self.items):
            if item.held_out:
                continue
            look = measure_look(self._read(index).rgb)
            if look is not None:
                self._looks[index] = look
                looks.setdefault(item.source, []).append(look)
        return tuple(looks.values())

    def _read(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = read_sample(self.items[index], self._masks, spacing_um_px=self._spacing_um_px)
        if self._equalization is not None:
            sample = replace(sample, rgb=equalize(sample.rgb, self._equalization))
        size = sample.rgb.nbytes + sample.labels.nbytes
        # an image of weight 0 is never drawn
        if self.items[index].weight and self._kept_bytes + size <= self._cache_bytes:
            self._kept[index] = sample
            self._kept_bytes += size
        return sample


def count_pixels(store: SampleStore) -> NDArray[np.int64]:
    """Read every sample, so that a bad file is met before training and not in its third hour.

    Returns:
        The pixels of each class index in all masks, `int64` `(256,)`; an image without a mask has none.

    Raises:
        DataError: As `read_sample`.
    """
    counts = np.zeros(256, np.int64)
    for index, item in enumerate(store.items):
        labels = store[index].labels
        if item.mask is not None:
            counts += np.bincount(labels.ravel(), minlength=256)
    return counts


def _scaled_size(pixels: NDArray[np.uint8], factor: float) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return max(1, round(width * factor)), max(1, round(height * factor))


def decode_rgb(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, JPEG or TIFF picture, `(h, w, 3)`, as they are stored.

    Raises:
        DataError: The file cannot be read or decoded.
    """
    import cv2

    bgr = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.ascontiguousarray(bgr[..., ::-1])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB `(h, w, 3)` or one channel `(h, w)` as a PNG file."""
    import cv2

    _, data = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return bytes(data)


def _decode(path: Path, flags: int) -> NDArray[Any]:
    # imdecode rather than imread, which writes its own warnings to stderr
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except cv2.error as error:
        raise DataError(f"{path}: cannot decode: {error.err or error}") from error
    if pixels is None:
        raise DataError(f"{path}: not a picture OpenCV can decode; expected PNG, JPEG or TIFF")
    return np.asarray(pixels)
