"""Finds out what works: runs a model of one node on a provider, reads a slide, and checks both results."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from histoseg.errors import ProviderError, SlideError

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels

SIDE = 32
# Half precision, which no provider should use for this model, is off by more.
TOLERANCE = 1e-4
SLIDE_TILE = 64


def probe_provider(provider: str) -> None:
    """Run a convolution on a provider, as a model would.

    Raises:
        ProviderError: It cannot, or what it gives is wrong.
        ModelError: The run failed.
    """
    from histoseg.models import probe_model
    from histoseg.session import open_session

    rgb = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    with open_session(probe_model(), provider=provider, threads=1) as session:
        off = float(np.abs(session.run(rgb) - predict_probe(rgb)).max())
    if not off <= TOLERANCE:  # also when it is NaN
        raise ProviderError(
            f"provider '{provider}' gives wrong results: a convolution is off by {off:.2g}, expected at most "
            f"{TOLERANCE:g}; do not use it here"
        )


def predict_probe(rgb: Pixels) -> Floats:
    """Return what `models/probe.onnx` gives, by NumPy.

    Args:
        rgb: `(batch, height, width, 3)` uint8.

    Returns:
        `(batch, height, width, 2)` float32 probabilities of red and blue.
    """
    padded = np.pad(rgb[..., [0, 2]].astype(np.float64) / 32, ((0, 0), (1, 1), (1, 1), (0, 0)))
    means = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).mean(axis=(-2, -1))
    powers = np.exp(means)
    probabilities: Floats = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def time_model(model: Path, provider: str) -> tuple[float, dict[str, int]]:
    """Run a model on one white tile of its own size, twice.

    Returns:
        Seconds of the second run, and the nodes on each provider where that can be told.

    Raises:
        ProviderError: The provider does not run it.
        ModelError: The model cannot be loaded or run.
    """
    from histoseg.session import open_session

    with open_session(model, provider=provider) as session:
        width, height = session.card.patch_size_pixels
        tile = np.full((session.batch_size or 1, height, width, 3), 255, np.uint8)
        session.run(tile)  # buffers are made, kernels are chosen
        begin = perf_counter()
        session.run(tile)
        return perf_counter() - begin, session.placement or {}


def probe_openslide() -> str:
    """Write a small slide, read it with OpenSlide, and return OpenSlide's version.

    Raises:
        SlideError: OpenSlide does not load, or reads other pixels than were written.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise SlideError(
            f"OpenSlide does not load ({error}); repair with: pip install --force-reinstall openslide-bin "
            "openslide-python"
        ) from error
    import tifffile

    rgb = np.random.default_rng(0).integers(0, 256, (SLIDE_TILE, SLIDE_TILE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.tif"
        tifffile.imwrite(path, rgb, tile=(SLIDE_TILE, SLIDE_TILE), photometric="rgb")
        with openslide.OpenSlide(path) as slide:
            read = np.asarray(slide.read_region((0, 0), 0, (SLIDE_TILE, SLIDE_TILE)).convert("RGB"))
    if not np.array_equal(read, rgb):
        raise SlideError("OpenSlide reads other pixels than were written; reinstall openslide-bin")
    return str(openslide.__library_version__)
