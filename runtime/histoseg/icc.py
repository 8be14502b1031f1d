"""Colours of a slide in sRGB, by its ICC profile.

The rendering intent is the one that the profile's maker recommends in its header, as OpenSlide's own viewers
take it (https://github.com/openslide/openslide-python/pull/227): a scanner's profile need not hold tables
for the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import SlideError

if TYPE_CHECKING:
    from histoseg.arrays import Pixels


class SrgbTransform:
    """Converts device RGB to sRGB.

    One serves many threads: Pillow lets go of the interpreter's lock while lcms2 works, and lcms2 keeps what
    it remembers of the last pixel on the caller's stack (`CachedXFORM` in its `cmsxform.c`).
    """

    def __init__(self, profile: Any) -> None:
        """Prepare the conversion from an `ImageCmsProfile`.

        Raises:
            ImageCms.PyCMSError: The profile is not one of RGB pixels.
        """
        from PIL import ImageCms

        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        self._transform = ImageCms.buildTransform(
            profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent
        )

    def convert(self, rgb: Pixels) -> Pixels:
        """Return `(height, width, 3)` sRGB."""
        from PIL import Image

        picture = Image.fromarray(rgb)
        self._transform.apply_in_place(picture)
        return np.array(picture)


def read_profile(handle: Any, path: Path, *, convert: bool) -> tuple[str | None, SrgbTransform | None]:
    """Return the name of a slide's ICC profile, and the conversion to sRGB if it is wanted.

    Args:
        handle: An `openslide.OpenSlide`.
        path: Named in the error.
        convert: Whether pixels are to be converted. A slide without a profile counts as sRGB already.

    Raises:
        SlideError: Pixels are to be converted, but the profile is damaged or not one of RGB pixels.
    """
    from PIL import ImageCms

    name: str | None = "unreadable"
    try:
        profile = handle.color_profile
        name = _describe(profile) if profile else None
        return name, SrgbTransform(profile) if profile and convert else None
    except (ImageCms.PyCMSError, ValueError) as error:
        if not convert:
            return name, None
        raise SlideError(
            f"{path}: its ICC profile ({name}) cannot be used ({error}), expected one of RGB pixels; "
            'repair it, or set "color_space": "device" in the model\'s card'
        ) from error


def _describe(profile: Any) -> str:
    """Return the name that an `ImageCmsProfile` gives itself."""
    return (profile.profile.profile_description or "").strip() or "unnamed"
