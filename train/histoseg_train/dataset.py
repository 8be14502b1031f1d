"""Where the images and masks of a training set lie, and which of them are held out.

A training set is a folder with `images/` and `masks/` (and perhaps `val/` with the same inside, and a
`dataset.json`), or a `.toml` file that lists several sources, or the name of a recipe that travels with the
package. All become one list of `Item`s; nothing is decoded here.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from histoseg.errors import CardError, DataError
from histoseg.jsonclass import from_json
from histoseg_train.description import read_description
from histoseg_train.recipes import SUFFIX, find_recipe, is_shipped, list_recipes, read_toml

# a card names this many held-out images of a source and counts the rest
MAX_NAMES = 40

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class MaskRule:
    """How the pixel values of a mask become class indices.

    With neither field, masks hold class colours, class indices, or 0 and 255 when there are two classes; see
    `histoseg_train.maskfile`.
    """

    threshold: int | None = None
    """Pixels above it, of colours the brightest channel, are class 1, the others class 0. Zero makes two
    classes of masks that number or colour each object."""
    values: tuple[tuple[int, int], ...] = ()
    """Pairs of pixel value and class index; other values are refused."""


@dataclass(frozen=True)
class Source:
    """One `[[source]]` of a dataset file; paths are relative to `--root`, or to the file."""

    name: str
    images: str
    spacing_um_px: float
    masks: str | None = None
    """Without any, only the teachers of `histoseg-train fit --teacher` say what the images show."""
    stems: tuple[str, ...] = ("*",)
    """Names without suffix, or patterns with `*` and `?`, of the images to use."""
    list: str | None = None
    """A text file with one such name a line, which replaces `stems`."""
    except_list: str | None = None
    """A text file with one name a line, of the images not to use."""
    held_out: tuple[str, ...] = ()
    """Names or patterns of the images kept for validation."""
    threshold: int | None = None
    values: dict[str, Any] | None = None
    dilate_um: float = 0.0
    """By how much classes grow into the background."""
    weight: float = 1.0
    """How often this source is drawn from, relative to the others; 0, without masks: never, and its colours
    are lent to the others by `--restain`."""
    licence: str = "not stated"
    citation: str = ""


@dataclass(frozen=True)
class DatasetFile:
    """A `.toml` dataset file."""

    source: tuple[Source, ...]
    fit: dict[str, Any] = field(default_factory=dict)
    """Options of `histoseg-train fit`; see `histoseg_train.recipes`."""


@dataclass(frozen=True)
class Item:
    """One image and its mask, not yet read."""

    source: str
    stem: str
    image: Path
    mask: Path | None
    """`None` when nothing says what the image shows but teachers."""
    spacing_um_px: float | None
    """`None` when the image already has the model's um/px."""
    rule: MaskRule
    weight: float
    held_out: bool
    dilate_um: float = 0.0
    group: str = ""
    """What is held out or trained on as a whole, such as a slide; without one, each item alone."""


@dataclass(frozen=True)
class Split:
    """How images were held out at random."""

    validation: float
    """Share of every source's groups."""
    seed: int


@dataclass(frozen=True)
class Dataset:
    """All items of a training set, and words about their sources for the model's card."""

    items: tuple[Item, ...]
    sources: tuple[dict[str, str], ...]
    split: Split | None = None
    """`None` where the data say themselves what is held out."""

    @property
    def training(self) -> tuple[Item, ...]:
        """Return the items to train on, with those that lend their colours alone."""
        return tuple(item for item in self.items if not item.held_out)

    @property
    def drawn(self) -> tuple[Item, ...]:
        """Return the items that patches are drawn from: those to train on but the lenders."""
        return tuple(item for item in self.training if item.weight)

    @property
    def held_out(self) -> tuple[Item, ...]:
        """Return the items kept for validation."""
        return tuple(item for item in self.items if item.held_out)

    @property
    def labelled(self) -> tuple[Item, ...]:
        """Return the items that have a mask."""
        return tuple(item for item in self.items if item.mask is not None)


def find_dataset(
    path: Path,
    *,
    root: Path | None = None,
    threshold: int | None = None,
    dilate_um: float = 0.0,
    validation: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """List the images and masks of a folder or of a `.toml` dataset file.

    Args:
        path: The folder or file, or the name of a recipe that travels with the package.
        root: Folder that the paths in the file are relative to, instead of the file's own, or of the current
            folder where the recipe travels with the package.
        threshold: For a folder: grey level above which a mask pixel is class 1.
        dilate_um: For a folder: by how much classes grow into the background.
        validation: Share of images to hold out when neither `val/` nor the file names any.
        seed: Chooses which.

    Raises:
        DataError: A folder or file is missing, empty, unpaired or ill-formed, or nothing is left to train on.
    """
    dataset = list_items(path, root=root, threshold=threshold, dilate_um=dilate_um)
    if not dataset.labelled:
        raise DataError(f"{path}: no image has a mask, expected some to hold out; add a source with masks")
    if not dataset.held_out:
        dataset = _split(dataset, Split(validation, seed))
    if not dataset.drawn or not dataset.held_out:
        raise DataError(
            f"{path}: {len(dataset.drawn)} images to train on and {len(dataset.held_out)} held out, "
            "expected at least one of each; add images or change --validation"
        )
    return dataset


def release_held_out(dataset: Dataset) -> Dataset:
    """Return the set with nothing held out."""
    items = tuple(replace(item, held_out=False) for item in dataset.items)
    return replace(dataset, items=items, split=None)


def list_items(
    path: Path, *, root: Path | None = None, threshold: int | None = None, dilate_um: float = 0.0
) -> Dataset:
    """List the images and masks as `find_dataset` does, holding out only what the data name.

    Raises:
        DataError: A folder or file is missing, empty, unpaired or ill-formed.
    """
    if path.is_dir():
        return _find_folder(path, MaskRule(threshold=threshold), dilate_um)
    if path.suffix.lower() == SUFFIX and path.is_file():
        return _find_sources(path, root or (Path() if is_shipped(path) else path.parent))
    if str(path) in list_recipes():
        return _find_sources(find_recipe(path), root or Path())
    found = "a file" if path.exists() else "nothing"
    raise DataError(
        f"{path}: found {found}, expected a folder with images/ and masks/, a .toml file, or a recipe: "
        f"{', '.join(list_recipes())}"
    )


def _find_folder(folder: Path, rule: MaskRule, dilate_um: float) -> Dataset:
    name, said = folder.resolve().name, read_description(folder)
    spacing = said.spacing_um_px if said else None
    item = Item(name, "", folder, folder, spacing, rule, 1.0, held_out=False, dilate_um=dilate_um)
    items = list(_pair(item, folder / "images", folder / "masks", ("*",)))
    if (folder / "val").is_dir():
        kept = replace(item, held_out=True)
        items += _pair(kept, folder / "val" / "images", folder / "val" / "masks", ("*",))
    if said is None:
        return Dataset(tuple(items), (_describe(name, "not stated", "", dilate_um=dilate_um),))
    items = [replace(item, group=said.find_slide(item.stem)) for item in items]
    grown_um = dilate_um + float(said.patches.get("dilate_um", 0))
    return Dataset(tuple(items), (_describe(name, said.licence, said.citation, dilate_um=grown_um),))


def _find_sources(path: Path, root: Path) -> Dataset:
    sources = _read_dataset_file(path)
    items: list[Item] = []
    for source in sources:
        items += _find_source(source, path, root)
    words = [_describe(s.name, s.licence, s.citation, dilate_um=s.dilate_um) for s in sources]
    for source, said in zip(sources, words, strict=True):
        if source.masks is None:
            said["masks"] = (
                "none: teachers say what the images show" if source.weight else "none: colours alone"
            )
    return Dataset(tuple(items), tuple(words))


def _describe(name: str, licence: str, citation: str, *, dilate_um: float) -> dict[str, str]:
    """Return what the card says of a source."""
    words = {"name": name, "licence": licence} | ({"citation": citation} if citation else {})
    return words | {"masks": f"grown by {dilate_um:g} um"} if dilate_um else words


def _read_dataset_file(path: Path) -> tuple[Source, ...]:
    try:
        sources = from_json(DatasetFile, read_toml(path)).source
    except CardError as error:
        raise DataError(f"{path}: {error}") from error
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice or not sources:
        raise DataError(
            f"{path}: {len(sources)} sources, {twice} named twice; expected one or more, all different"
        )
    return sources


def _find_source(source: Source, path: Path, root: Path) -> list[Item]:
    for key in ("spacing_um_px", "weight"):
        lends = key == "weight" and source.masks is None and source.weight == 0
        if not getattr(source, key) > 0 and not lends:
            hint = "; to lend its colours alone, leave masks away" if key == "weight" else ""
            raise DataError(
                f"{path}: {source.name}: {key} is {getattr(source, key)}, expected more than 0{hint}"
            )
    if source.dilate_um < 0:
        raise DataError(f"{path}: {source.name}: dilate_um is {source.dilate_um}, expected 0 or more")
    blank = Item(
        source.name,
        "",
        path,
        path,
        source.spacing_um_px,
        _mask_rule(source, path),
        source.weight,
        held_out=False,
        dilate_um=source.dilate_um,
    )
    _check_bare(source, path)
    patterns = source.stems if source.list is None else _read_list(root / source.list)
    masks = None if source.masks is None else root / source.masks
    items = list(_pair(blank, root / source.images, masks, patterns))
    if source.except_list is not None:
        left_out = frozenset(_read_list(root / source.except_list))
        items = [item for item in items if item.stem not in left_out]
    _match_all(source.held_out, [item.stem for item in items], f"{path}: {source.name}: held_out")
    return [replace(item, held_out=_matches(item.stem, source.held_out)) for item in items]


def _check_bare(source: Source, path: Path) -> None:
    """Refuse what is said of masks that are not there."""
    said = [key for key in ("held_out", "threshold", "values", "dilate_um") if getattr(source, key)]
    if source.masks is None and said:
        raise DataError(
            f"{path}: {source.name}: {said[0]} is given and masks is not, expected both or neither"
        )


def _mask_rule(source: Source, path: Path) -> MaskRule:
    if source.values is None:
        return MaskRule(threshold=source.threshold)
    try:
        pairs = tuple((int(value), int(index)) for value, index in source.values.items())
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {source.name}: values are {source.values}, expected {{ 1 = 1 }}") from error
    if source.threshold is not None:
        raise DataError(f"{path}: {source.name}: has threshold and values, expected one of them")
    # a mask without a word about its background keeps 0 for it
    return MaskRule(values=pairs if 0 in dict(pairs) else ((0, 0), *pairs))


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the list of images: {error}") from error
    return tuple(Path(line).stem for line in lines)


def _pair(blank: Item, images: Path, masks: Path | None, patterns: tuple[str, ...]) -> Iterable[Item]:
    """Yield an item for every image that matches, sorted by stem, each with its mask if there are any."""
    image_of = _stems(images)
    _match_all(patterns, image_of, str(images))
    chosen = sorted(stem for stem in image_of if _matches(stem, patterns))
    if masks is None:
        yield from (replace(blank, stem=stem, image=image_of[stem], mask=None) for stem in chosen)
        return
    mask_of = _stems(masks)
    unpaired = [stem for stem in chosen if stem not in mask_of]
    if unpaired:
        raise DataError(
            f"{images / image_of[unpaired[0]].name}: no mask '{unpaired[0]}.*' in {masks} "
            f"({len(unpaired)} of {len(chosen)} images have none); add the mask or remove the image"
        )
    lonely = [stem for stem in mask_of if stem not in image_of and _matches(stem, patterns)]
    if lonely:
        raise DataError(
            f"{mask_of[lonely[0]]}: no image '{lonely[0]}.*' in {images}; add it or remove the mask"
        )
    for stem in chosen:
        yield replace(blank, stem=stem, image=image_of[stem], mask=mask_of[stem])


def _stems(folder: Path) -> dict[str, Path]:
    """Return the picture files of a folder by stem."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {', '.join(SUFFIXES)} files")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no {', '.join(SUFFIXES)} files in it; expected one or more")
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DataError(f"{file}: {found[file.stem].name} has the same stem; expected one file a stem")
        found[file.stem] = file
    return found


def _matches(stem: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(stem, pattern) for pattern in patterns)


def _match_all(patterns: Iterable[str], stems: Iterable[str], where: str) -> None:
    stems = tuple(stems)
    for pattern in patterns:
        if not any(fnmatchcase(stem, pattern) for stem in stems):
            raise DataError(f"{where}: no image matches '{pattern}'; expected a stem or a pattern of one")


def name_held_out(dataset: Dataset) -> dict[str, list[str]]:
    """Return the stems of each source's held-out images, of many only the first."""
    names: dict[str, list[str]] = {}
    for item in dataset.held_out:
        names.setdefault(item.source, []).append(item.stem)
    return {
        source: stems
        if len(stems) <= MAX_NAMES
        else [*stems[:MAX_NAMES], f"and {len(stems) - MAX_NAMES} more"]
        for source, stems in names.items()
    }


def find_held_out(dataset: Dataset, training: Mapping[str, Any]) -> tuple[Item, ...]:
    """Return the items that were not trained on, as far as that is known.

    Args:
        dataset: From `list_items`.
        training: What a model's metadata say of its training.

    Returns:
        What the data hold out; or what training held out at random, where these are the same images; or
        nothing.
    """
    if dataset.held_out:
        return dataset.held_out
    try:
        again = _split(dataset, Split(**training["split"]))
    except (KeyError, TypeError, ValueError):  # free words of a file
        return ()
    return again.held_out if name_held_out(again) == training.get("held_out") else ()


def _split(dataset: Dataset, split: Split) -> Dataset:
    """Hold out a share of every source's groups, at least one and never all."""
    kept: set[tuple[str, str]] = set()
    for source in sorted({item.source for item in dataset.labelled}):
        groups = sorted({_group(item) for item in dataset.labelled if item.source == source})
        chosen = choose_held_out(groups, share=split.validation, seed=f"{split.seed}/{source}")
        kept |= {(source, group) for group in chosen}
    items = (replace(item, held_out=(item.source, _group(item)) in kept) for item in dataset.items)
    return replace(dataset, items=tuple(items), split=split)


def _group(item: Item) -> str:
    return item.group or item.stem


def choose_held_out(names: Sequence[str], *, share: float, seed: str) -> set[str]:
    """Return `share` of the names, at least one and never all; the same ones for the same seed."""
    count = min(len(names) - 1, math.ceil(share * len(names)))
    return set(random.Random(seed).sample(names, count))  # noqa: S311
