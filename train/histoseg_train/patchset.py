"""A training set cut from slides: the folder with its patches, which appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from histoseg.errors import DataError
from histoseg.folder import make_folder
from histoseg_train.cutting import CutOptions, Patch, SlidePair, iter_patches
from histoseg_train.dataset import choose_held_out
from histoseg_train.description import FILE_NAME, Description, write_description
from histoseg_train.images import encode_png


@dataclass(frozen=True)
class Tally:
    """What became of a slide."""

    name: str
    held_out: bool
    patches: int
    pixels: tuple[int, ...]
    """Of each class, in all patches."""


def split_slides(
    names: Sequence[str], *, held_out: Collection[str] = (), share: float = 0.2, seed: int = 0
) -> set[str]:
    """Choose the slides that are held out.

    Args:
        names: All slides.
        held_out: Names or patterns of those to hold out, instead of chance.
        share: How many, rounded up; of more than one slide never all.
        seed: Chooses which.

    Raises:
        DataError: A pattern matches no slide, or nothing is left on one side.
    """
    for pattern in held_out:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DataError(
                f"--held-out is '{pattern}', expected the name of a slide without suffix, such as {names[0]}"
            )
    kept = {name for name in names if any(fnmatchcase(name, pattern) for pattern in held_out)}
    if not held_out and share:
        kept = choose_held_out(sorted(names), share=share, seed=str(seed))
        if not kept:
            raise DataError(
                "found one slide, expected two or more, of which one is held out; with --validation 0 none is"
            )
    if len(kept) == len(names):
        raise DataError(f"--held-out leaves none of the {len(names)} slides to train on; name fewer")
    return kept


def write_patches(
    pairs: Sequence[SlidePair],
    options: CutOptions,
    output: Path,
    *,
    held_out: Collection[str] = (),
    licence: str = "not stated",
    report: Callable[[Tally], None] = lambda _: None,
) -> list[Tally]:
    """Cut slides into a folder of `images/`, `masks/`, the same under `val/`, and `dataset.json`.

    Args:
        pairs: The slides, and their annotations.
        options: How to cut them.
        output: The folder to make; its name must be free.
        held_out: Names of the slides whose patches go under `val/`.
        licence: Of the slides.
        report: Called after every slide.

    Returns:
        What became of each slide.

    Raises:
        HistosegError: A slide or annotation cannot be read, no patch is left, or the folder cannot be made.
    """
    tallies = []
    with make_folder(output, ("images", "masks", "val", FILE_NAME)) as folder:
        for pair in pairs:
            kept = pair.name in held_out
            tallies.append(_write_slide(pair, options, folder / "val" if kept else folder, held_out=kept))
            report(tallies[-1])
        _check(tallies, output)
        write_description(folder, _describe(options, tallies, licence))
    return tallies


def _write_slide(pair: SlidePair, options: CutOptions, folder: Path, *, held_out: bool) -> Tally:
    count, pixels = 0, np.zeros(len(options.class_names), np.int64)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for patch in iter_patches(pair, options):
        _write_patch(patch, folder)
        count += 1
        pixels += np.bincount(patch.labels.ravel(), minlength=len(pixels))
    return Tally(pair.name, held_out, count, tuple(pixels.tolist()))


def _write_patch(patch: Patch, folder: Path) -> None:
    for kind, pixels in (("images", patch.rgb), ("masks", patch.labels)):
        (folder / kind / f"{patch.name}.png").write_bytes(encode_png(pixels))


def _check(tallies: list[Tally], output: Path) -> None:
    for held_out, words in ((False, "train on"), (True, "hold out")):
        chosen = [tally for tally in tallies if tally.held_out is held_out]
        if chosen and not any(tally.patches for tally in chosen):
            raise DataError(
                f"{output}: no patch to {words}: {chosen[0].name} and others hold neither tissue nor an "
                "annotation; check --spacing and --annotations, or give --no-tissue"
            )


def _describe(options: CutOptions, tallies: list[Tally], licence: str) -> Description:
    used = asdict(options)
    words = {name: used.pop(name) for name in ("class_names", "class_colors", "spacing_um_px")}
    slides = [asdict(tally) for tally in tallies]
    names = "slide_x_y, level-0 px of the top left corner"
    return Description(**words, licence=licence, patches={**used, "names": names, "slides": slides})
