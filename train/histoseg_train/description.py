"""`dataset.json`: what a folder of images and masks shows, so that nobody has to say it again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histoseg.errors import CardError, DataError
from histoseg.jsonclass import from_json, to_json

FILE_NAME = "dataset.json"


@dataclass(frozen=True)
class Description:
    """What `dataset.json` holds."""

    spacing_um_px: float
    class_names: tuple[str, ...]
    """In the order of the class indices, the background first."""
    class_colors: tuple[str, ...]
    """`#rrggbb` of each class."""
    licence: str = "not stated"
    citation: str = ""
    patches: dict[str, Any] = field(default_factory=dict)
    """How the images were cut from slides; empty where they were not."""

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if not self.spacing_um_px > 0:
            raise CardError(f"field 'spacing_um_px' is {self.spacing_um_px}, expected more than 0")
        if count < 2 or len(set(self.class_names)) < count:
            raise CardError(
                f"field 'class_names' is {list(self.class_names)}, expected two or more that differ"
            )
        right = {color.lower() for color in self.class_colors if re.fullmatch("#[0-9a-fA-F]{6}", color)}
        if len(self.class_colors) != count or len(right) < count:
            raise CardError(
                f"field 'class_colors' is {list(self.class_colors)}, expected {count} of #rrggbb that differ"
            )

    def find_slide(self, stem: str) -> str:
        """Return the name of the slide that a patch was cut from; nothing where it was not."""
        match = re.fullmatch(r"(.+)_\d+_\d+", stem)
        return match[1] if match and self.patches else ""


def read_description(folder: Path) -> Description | None:
    """Return what a folder's `dataset.json` says; `None` where there is none.

    Raises:
        DataError: It cannot be read, or a field is unknown, missing or impossible.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return from_json(Description, document)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # a CardError is a ValueError, and so is what is no JSON or no text
        words = str(error).replace("the model card", "the file")
        raise DataError(f"{path}: {words}; repair or remove it") from error


def write_description(folder: Path, description: Description) -> None:
    """Write `dataset.json` into a folder."""
    text = json.dumps(to_json(description), indent=2)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")
