"""What a trained model file says about itself, so that exporting it needs no flags.

The metadata travel inside the file that Keras wrote, where Keras does not look: the extra zip member
`histoseg.json` of a `.keras` archive, or the root attribute `histoseg` of an `.h5` file. Importing this
module loads neither Keras nor TensorFlow.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histoseg.atomic import write_whole
from histoseg.card import METADATA_KEY
from histoseg.equalize import Equalization
from histoseg.errors import CardError, ModelError, OutputError
from histoseg.jsonclass import from_json, to_json
from histoseg.transform import Normalization
from histoseg_train.filekind import HDF5_MAGIC, ZIP_MAGIC

MEMBER = f"{METADATA_KEY}.json"
SUFFIXES = (".keras", ".h5")

# a root attribute lives in an HDF5 object header, which ends at 64 KiB
_MAX_ATTRIBUTE_BYTES = 64_000


@dataclass(frozen=True)
class KerasMetadata:
    """What a trained model expects, what its classes are, and how it was made."""

    architecture: str
    """Words and numbers that name the architecture, such as `unet-w16-d3`."""
    class_names: tuple[str, ...]
    """One for each output channel, in order."""
    class_colors: tuple[str, ...]
    """One `#rrggbb` for each class."""
    spacing_um_px: float
    """Micrometres to a pixel of the images the model was trained on."""
    normalization: Normalization
    """Which of `histoseg.transform.NORMALIZATIONS` the model expects before its first layer."""
    patch_size_pixels: tuple[int, int]
    """Width and height of the training patches."""
    equalization: Equalization | None = None
    """What was done to the training images at that um/px."""
    training: dict[str, Any] = field(default_factory=dict)
    """Free-form: data sources, held-out images, Dice, seed, command."""

    def __post_init__(self) -> None:
        """Refuse values that no model can have, naming the field."""
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            raise CardError(f"field 'class_names' is {list(self.class_names)}, expected two or more names")
        if len(self.class_colors) != len(self.class_names):
            raise CardError(
                f"field 'class_colors' has {len(self.class_colors)} items, expected {len(self.class_names)}"
            )
        for color in self.class_colors:
            if not re.fullmatch(r"#[0-9a-f]{6}", color):
                raise CardError(f"field 'class_colors' holds {color!r}, expected lower-case #rrggbb")
        if not self.spacing_um_px > 0:
            raise CardError(f"field 'spacing_um_px' is {self.spacing_um_px}, expected more than 0")
        if min(self.patch_size_pixels) < 1:
            raise CardError(f"field 'patch_size_pixels' is {self.patch_size_pixels}, expected 1 or more")


def write_metadata(path: Path, metadata: KerasMetadata) -> None:
    """Put `metadata` into a saved Keras file; the file is replaced as a whole or not at all.

    Args:
        path: A `.keras` or `.h5` file that Keras saved. Metadata it already holds are replaced.
        metadata: What to store.

    Raises:
        ModelError: The file is missing, unreadable, or of another kind.
        OutputError: The file cannot be replaced, or the metadata do not fit into HDF5.
    """
    write = _choose(path, keras=_write_zip_member, h5=_write_h5_attribute)
    text = json.dumps(to_json(metadata), indent=1, sort_keys=True)
    try:
        with write_whole(path) as part:
            write(path, part, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot store the metadata: {error}") from error


def read_metadata(path: Path) -> KerasMetadata | None:
    """Return the metadata inside a Keras file, or `None` when histoseg did not train it.

    Args:
        path: A `.keras` or `.h5` file.

    Raises:
        ModelError: The file is missing, unreadable, of another kind, or holds metadata that are wrong;
            the message names the field.
    """
    text = _choose(path, keras=_read_zip_member, h5=_read_h5_attribute)(path)
    if text is None:
        return None
    try:
        return from_json(KerasMetadata, json.loads(text))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: its histoseg metadata are not JSON ({error}); train it again") from error
    except CardError as error:
        raise ModelError(f"{path}: its histoseg metadata are wrong: {error}") from error


def require_metadata(path: Path) -> KerasMetadata:
    """Return the metadata inside a Keras file.

    Raises:
        ModelError: As `read_metadata`, and when there are none.
    """
    metadata = read_metadata(path)
    if metadata is None:
        raise ModelError(f"{path}: holds no histoseg metadata; expected a model of `histoseg-train fit`")
    return metadata


def _choose(path: Path, *, keras: Callable[..., Any], h5: Callable[..., Any]) -> Callable[..., Any]:
    """Choose by the first bytes of a file: a suffix is a promise that renamed files break."""
    if not path.is_file():
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ModelError(f"{path}: suffix is '{suffix}', expected {' or '.join(SUFFIXES)}")
        raise ModelError(f"{path}: no such file; expected a model that Keras saved")
    with path.open("rb") as file:
        head = file.read(len(HDF5_MAGIC))
    if head.startswith(ZIP_MAGIC):
        return keras
    if head == HDF5_MAGIC:
        return h5
    raise ModelError(f"{path}: neither a .keras archive nor an HDF5 file; expected a model that Keras saved")


def _write_zip_member(path: Path, part: Path, text: str) -> None:
    try:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(part, "w") as new:
            for item in old.infolist():
                if item.filename != MEMBER:
                    new.writestr(item, old.read(item))
            new.writestr(MEMBER, text)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path}: not a .keras archive ({error})") from error


def _read_zip_member(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(MEMBER).decode() if MEMBER in archive.namelist() else None
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: not a .keras archive ({error}); expected a zip that Keras saved"
        ) from error


def _write_h5_attribute(path: Path, part: Path, text: str) -> None:
    import h5py

    size = len(text.encode())
    if size > _MAX_ATTRIBUTE_BYTES:
        raise OutputError(
            f"{path}: its metadata take {size} bytes, an HDF5 attribute holds {_MAX_ATTRIBUTE_BYTES}; "
            "save the model as .keras"
        )
    if not h5py.is_hdf5(path):
        raise ModelError(f"{path}: not an HDF5 file; expected a model that Keras saved")
    shutil.copyfile(path, part)
    with h5py.File(part, "r+") as file:
        file.attrs[METADATA_KEY] = text


def _read_h5_attribute(path: Path) -> str | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            value = file.attrs.get(METADATA_KEY)
    except OSError as error:
        raise ModelError(f"{path}: not an HDF5 file ({error}); expected a model that Keras saved") from error
    return value.decode() if isinstance(value, bytes) else value
