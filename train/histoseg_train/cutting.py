"""Patches of whole slides, with masks from annotations: what `histoseg-train fit` reads.

Frames: `l0_` level-0 pixels, `m_` pixels at the patches' um/px. One row of patches is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from histoseg.annotations import GEOJSON_SUFFIXES, XML_SUFFIXES
from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.errors import DataError
from histoseg.masks import TIFF_SUFFIXES
from histoseg.scale import ScaledSlide, plan_scale
from histoseg.slide import ArraySlide, Slide, open_slide
from histoseg.tissue import find_tissue
from histoseg.truth import Truth, open_truth
from histoseg_train.images import decode_rgb
from histoseg_train.preprocess import dilate_labels

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Mask, Pixels

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
ANNOTATION_SUFFIXES = (*GEOJSON_SUFFIXES, *XML_SUFFIXES, *PICTURE_SUFFIXES, *TIFF_SUFFIXES)

# By how much a slide's um/px may differ before its pixels are resampled, as in a card.
SPACING_TOLERANCE = 0.05


@dataclass(frozen=True)
class CutOptions:
    """How slides become patches."""

    class_names: tuple[str, ...]
    """The background first."""
    class_colors: tuple[str, ...]
    spacing_um_px: float = 0.5
    size: int = 512
    """Width and height of patches."""
    overlap: int = 0
    """Pixels that neighbours share; fewer than `size`."""
    tissue: bool = True
    """Leave out patches without tissue, unless an annotation reaches into them."""
    min_tissue: float = 0.1
    """Share of a patch that tissue must cover."""
    dilate_um: float = 0.0
    """By how much classes grow into the background."""
    mpp: float | None = None
    """Level-0 um/px, over what the slides state."""
    allow_coarse: bool = False
    """Enlarge slides that are coarser than the patches."""


@dataclass(frozen=True)
class SlidePair:
    """A slide and what is true of it."""

    slide: Path
    truth: Path

    @property
    def name(self) -> str:
        """Return what its patches are called."""
        return self.slide.stem


@dataclass(frozen=True)
class Patch:
    """A part of a slide."""

    name: str
    """`slide_x_y`, in level-0 pixels of its top left corner."""
    rgb: Pixels
    labels: Labels


def pair_slides(slides: Sequence[Path], annotations: Path) -> list[SlidePair]:
    """Find the annotation of every slide.

    Args:
        slides: The slides.
        annotations: The annotation of the only slide, or a folder that holds one file a slide, named like
            the slide with or without its suffix: `a.geojson` or `a.svs.geojson` for `a.svs`.

    Raises:
        DataError: A slide has none, or several.
    """
    if annotations.is_dir():
        return [SlidePair(slide, _find_annotation(slide, annotations)) for slide in slides]
    if len(slides) == 1 and annotations.is_file():
        return [SlidePair(slides[0], annotations)]
    found = "one file" if annotations.is_file() else "nothing"
    raise DataError(
        f"{annotations}: found {found} for {len(slides)} slides, expected a folder with one file for each, "
        "or the file of the only one"
    )


def _find_annotation(slide: Path, folder: Path) -> Path:
    names = {f"{name}{suffix}".lower() for name in (slide.stem, slide.name) for suffix in ANNOTATION_SUFFIXES}
    files = sorted(path for path in folder.iterdir() if path.name.lower() in names)
    files = [path for path in files if path.resolve() != slide.resolve()]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise DataError(
            f"{slide}: found {found} in {folder}, expected one annotation '{slide.stem}.*': "
            ".geojson, .json, .xml, .png, .jpg or .tif"
        )
    return files[0]


def check_slides(pairs: Sequence[SlidePair], options: CutOptions) -> None:
    """Open every slide, so that a bad one is met at once.

    Raises:
        DataError: A picture cannot be decoded.
        SlideError: A slide cannot be opened, or its um/px do not do.
    """
    for pair in pairs:
        with ExitStack() as stack:
            _open_scaled(stack, pair.slide, options)


def iter_patches(pair: SlidePair, options: CutOptions) -> Iterator[Patch]:
    """Yield the patches of a slide, row by row.

    The last patch of a row and of a column is moved back to end with the slide, so that all have one size;
    along a side on which the slide is smaller than a patch, so is its only patch.

    Args:
        pair: The slide, and its annotation.
        options: How to cut it.

    Raises:
        HistosegError: The slide or its annotation cannot be read, or do not fit each other.
    """
    with ExitStack() as stack:
        slide = _open_scaled(stack, pair.slide, options)
        l0_size = slide.slide.level_sizes[0]
        truth = stack.enter_context(open_truth(pair.truth, _describe(options), slide.scale, l0_size))
        tissue = _find_tissue(slide) if options.tissue else None
        starts = [list_starts(length, options.size, options.overlap) for length in slide.m_size]
        for m_y in starts[1]:
            labels = _read_rows(truth, m_y, slide, options)
            for m_x in starts[0]:
                part = np.ascontiguousarray(labels[:, m_x : m_x + options.size])
                box = (m_x, m_y, m_x + part.shape[1], m_y + part.shape[0])
                if part.any() or tissue is None or _cover(tissue, box, slide.m_size) >= options.min_tissue:
                    rgb = slide.read(m_x, m_y, part.shape[1], part.shape[0])
                    yield Patch(_name(pair, slide, m_x, m_y), rgb, part)


def list_starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where patches of `size` begin along an axis, so that every pixel of it lies in one or more."""
    last = max(0, length - size)
    return [*range(0, last, size - overlap), last]


def _open_scaled(stack: ExitStack, path: Path, options: CutOptions) -> ScaledSlide:
    scale = plan_scale(
        slide := _open(stack, path),
        options.spacing_um_px,
        tolerance=SPACING_TOLERANCE,
        mpp=options.mpp,
        force=options.allow_coarse,
    )
    return ScaledSlide(slide, scale)


def _open(stack: ExitStack, path: Path) -> Slide:
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return cast("Slide", ArraySlide(decode_rgb(path), None, path.stem))
    return stack.enter_context(open_slide(path))


def _describe(options: CutOptions) -> ModelCard:
    """Return the classes as the card of a model that is yet to be trained: truths are read for one."""
    return ModelCard(
        architecture="none",
        class_names=options.class_names,
        class_colors=options.class_colors,
        spacing_um_px=options.spacing_um_px,
        patch_size_pixels=(options.size, options.size),
        input=InputSpec("image", "NHWC", "uint8", "RGB", (None, None, None, 3)),
        output=OutputSpec("probabilities", "NHWC", "softmax", len(options.class_names)),
        tiling=Tiling(stride_multiple=1, halo_px=0, overlap_px=0),
        precision="fp32",
    )


def _find_tissue(slide: ScaledSlide) -> Mask:
    """Return where tissue lies, on an overview of the whole slide."""
    # without a margin, or patches beside the tissue would count as covered
    return find_tissue(slide.slide, spacing_um_px=slide.scale.l0_spacing_um_px, margin_um=0).mask


def _cover(mask: Mask, box: tuple[int, int, int, int], m_size: tuple[int, int]) -> float:
    """Return the share of `(x0, y0, x1, y1)` model pixels that an overview's mask covers."""
    x0, y0, x1, y1 = box
    (height, width), (m_width, m_height) = mask.shape, m_size
    rows = slice(y0 * height // m_height, -(-y1 * height // m_height))
    return float(mask[rows, x0 * width // m_width : -(-x1 * width // m_width)].mean())


def _read_rows(truth: Truth, m_y: int, slide: ScaledSlide, options: CutOptions) -> Labels:
    """Return a row of patches' classes, grown as if the whole slide had been."""
    height = slide.m_size[1]
    radius = options.dilate_um / options.spacing_um_px
    top, end = max(0, m_y - int(radius)), min(height, m_y + options.size + int(radius))
    labels = dilate_labels(truth.read(top, end - top), radius)
    return labels[m_y - top : min(height, m_y + options.size) - top]


def _name(pair: SlidePair, slide: ScaledSlide, m_x: int, m_y: int) -> str:
    l0_x, l0_y = (round(m * per_m) for m, per_m in zip((m_x, m_y), slide.scale.l0_per_m, strict=True))
    return f"{pair.name}_{l0_x}_{l0_y}"
