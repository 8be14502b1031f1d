"""A bundle by which a program in another language proves that it runs a model as histoseg does.

It holds a small slide at the model's um/px, two of its tiles with what the model gives for them, and the
stitched result. `docs/embedding.md` states the contract; `examples/conformance.py` keeps it in NumPy alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import histoseg
from histoseg.blend import build_weights, label_band
from histoseg.card import card_to_text
from histoseg.engine import Plan, iter_bands
from histoseg.errors import OutputError
from histoseg.grid import Axis, Grid, Tile, plan_grid
from histoseg.session import Session, open_session
from histoseg.slide import ArraySlide, ScaledSlide, plan_scale
from histoseg_export.tileset import open_tile_set
from histoseg_train.images import encode_png

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels
    from histoseg.card import ModelCard

SEED = 7
# Pixels by which the slide is larger than one tile along x and y: two tiles, the second mostly mirrored.
BEYOND_TILE = (96, 61)
TOLERANCES = {"tile_probability": 1e-3, "stitched_probability": 1e-3, "labels_equal": 0.9999}
"""Of single values, and the share of pixels: another onnxruntime or processor rounds otherwise."""


def write_bundle(model: Path, folder: Path, source: Path | None) -> None:
    """Run a model on a small slide and write what went in and came out.

    Args:
        model: An fp32 ONNX file of ours.
        folder: Is made, whole or not at all.
        source: What the slide is cut from, as for `open_tile_set`.

    Raises:
        OutputError: The folder exists already, or cannot be written.
        DataError, SlideError: There is nothing to cut from.
    """
    with _make_whole(folder) as part, open_session(model, provider="cpu") as session:
        card = session.card
        sides = zip(card.patch_size_pixels, BEYOND_TILE, strict=True)
        size = tuple(side + more for side, more in sides)
        rgb = open_tile_set(source, card, 1, seed=SEED, size=(size[0], size[1])).tiles[0]
        document = _describe(model, session, part, rgb)
        (part / "conformance.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (part / "card.json").write_text(card_to_text(card) + "\n", encoding="utf-8")
        shutil.copyfile(model, part / "model.onnx")


@contextmanager
def _make_whole(folder: Path) -> Iterator[Path]:
    if folder.exists():
        raise OutputError(f"{folder}: exists already; name a folder to make with --conformance")
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _describe(model: Path, session: Session, folder: Path, rgb: Pixels) -> dict[str, Any]:
    card = session.card
    grid = plan_grid(
        (rgb.shape[1], rgb.shape[0]),
        card.patch_size_pixels,
        overlap=card.tiling.overlap_px,
        halo=card.tiling.halo_px,
        stride_multiple=card.tiling.stride_multiple,
        crop=card.tiling.blend == "crop",
    )
    slide = ArraySlide(rgb, card.spacing_um_px, "conformance")
    scale = plan_scale(slide, card.spacing_um_px, tolerance=0)
    scaled = ScaledSlide(slide, scale, card.input.equalization)
    (folder / "slide.png").write_bytes(encode_png(rgb))
    corners = (grid.tile_at(0, 0), grid.tile_at(grid.y.count - 1, grid.x.count - 1))
    tiles = [_write_tile(folder, number, tile, scaled, session) for number, tile in enumerate(corners)]
    return {
        "histoseg": histoseg.__version__,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "provider": session.provider,
        "slide": {"file": "slide.png", "size_px": list(grid.m_size)},
        "grid": {"x": _describe_axis(grid.x, card), "y": _describe_axis(grid.y, card)},
        "tiles": tiles,
        "stitched": _write_stitched(folder, grid, scaled, session),
        "tolerances": TOLERANCES,
    }


def _describe_axis(axis: Axis, card: ModelCard) -> dict[str, Any]:
    """Return where tiles lie, and the weights of each over what it writes."""
    places = [
        {
            "start": axis.start(index),
            "write": list(axis.write_range(index)),
            "weights": [round(float(w), 7) for w in build_weights(axis, index, card.tiling.blend)],
        }
        for index in range(axis.count)
    ]
    return {**asdict(axis), "fade": axis.fade, "count": axis.count, "tiles": places}


def _write_tile(
    folder: Path, number: int, tile: Tile, slide: ScaledSlide, session: Session
) -> dict[str, Any]:
    width, height = session.card.patch_size_pixels
    rgb = slide.read(tile.m_x, tile.m_y, width, height)
    (folder / f"tile_{number}.png").write_bytes(encode_png(rgb))
    probabilities = session.run(rgb[None])[0]
    return {
        "row": tile.row,
        "column": tile.column,
        "x": tile.m_x,
        "y": tile.m_y,
        "input": f"tile_{number}.png",
        "output": _write_floats(folder / f"tile_{number}.f32", probabilities),
    }


def _write_stitched(folder: Path, grid: Grid, slide: ScaledSlide, session: Session) -> dict[str, Any]:
    card = session.card
    runs = np.ones((grid.y.count, grid.x.count), np.bool_)
    plan = Plan(grid, runs, card.tiling.blend, batch_size=session.batch_size or 1, readers=1)
    bands = list(iter_bands(slide, session, plan))
    background, threshold = card.background_index, card.output.threshold
    labels = np.concatenate([label_band(band, background=background, threshold=threshold) for band in bands])
    (folder / "labels.png").write_bytes(encode_png(labels))
    stitched = np.concatenate([band.probabilities for band in bands])
    return {"labels": "labels.png", "probabilities": _write_floats(folder / "stitched.f32", stitched)}


def _write_floats(path: Path, values: Floats) -> dict[str, Any]:
    """Write little-endian float32, rows first, channels last."""
    path.write_bytes(np.ascontiguousarray(values, "<f4").tobytes())
    return {"file": path.name, "dtype": "<f4", "shape": list(values.shape)}
