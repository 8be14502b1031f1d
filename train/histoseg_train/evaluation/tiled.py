"""A model and whole images of any size, by the runtime's own tiling: a Keras network, or an exported file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.engine import Plan, Predictor, choose_batch_size, iter_bands
from histoseg.errors import OptionError
from histoseg.grid import Axis, Grid, plan_axis
from histoseg.session import open_session
from histoseg.slide import ArraySlide, ScaledSlide, plan_scale
from histoseg.transform import NORMALIZATIONS, Normalization, apply_transform
from histoseg_train.metadata import KerasMetadata, require_metadata
from histoseg_train.tiling import fit_tiling

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels
    from histoseg.blend import Band

# A network sees most images of a training set as a whole, and its activations still fit into 2 GB.
TILE_PX = 1024
# Beyond a quarter of the tile a halo costs more than it gains; see `histoseg_export.probe`.
HALO_SHARE = 4


@dataclass(frozen=True)
class KerasPredictor:
    """A Keras network behind the interface of a `histoseg.session.Session`."""

    network: Any
    """From normalised pixels to probabilities, both channels last."""
    card: ModelCard
    normalization: Normalization
    batch_size: None = None

    def run(self, tiles: Pixels) -> Floats:
        """Return the `(n, h, w, classes)` float32 probabilities of `(n, h, w, 3)` uint8 RGB."""
        from keras import ops

        pixels = apply_transform(tiles, [NORMALIZATIONS[self.normalization]])
        # the blender writes into what it gets, and a backend's own memory may be read-only
        return np.array(ops.convert_to_numpy(self.network(pixels, training=False)), np.float32)


@dataclass(frozen=True)
class TiledModel:
    """A model that predicts images of any size."""

    predictor: Predictor
    runner: str
    """What runs it: Keras with its backend, or an execution provider."""
    shrinks: bool
    """Whether an image smaller than a tile is one tile of its own size, rounded up to the stride. Where not,
    it is mirrored up to a whole tile, halo included."""

    @property
    def card(self) -> ModelCard:
        """What the model expects and gives."""
        return self.predictor.card


@contextmanager
def open_model(path: Path, *, tile: int | None = None, provider: str = "auto") -> Iterator[TiledModel]:
    """Open a model that `histoseg-train fit` saved, or an ONNX file as `histoseg-run` opens it.

    Args:
        path: A `.keras`, `.h5` or `.onnx` file.
        tile: For a Keras file: side of the tiles that larger images are cut into, `TILE_PX` when `None`.
        provider: For an ONNX file: what runs it.

    Raises:
        ModelError: The file is missing, cannot be loaded, or does not describe itself.
        OptionError: The tile does not fit the network, or the file has its own.
        ProviderError: The provider is not to be had here.
    """
    if path.suffix.lower() != ".onnx":
        yield _open_keras(path, tile)
        return
    if tile is not None:
        raise OptionError(f"--tile is {tile}, but {path.name} has a fixed tile of its own; leave it away")
    with open_session(path, provider=provider) as session:
        yield TiledModel(session, session.provider, shrinks=False)


def wrap_network(network: Any, metadata: KerasMetadata, *, tile: int | None = None) -> TiledModel:
    """Return a Keras network with tiles that overlap as far as it sees.

    Args:
        network: From normalised pixels to probabilities, both channels last.
        metadata: What the network was trained for.
        tile: Side of the tiles that larger images are cut into, `TILE_PX` or a little more when `None`.

    Raises:
        OptionError: `tile` is no multiple of the network's stride.
    """
    import keras

    from histoseg_train.receptive import find_receptive_field

    stride = int(metadata.training.get("stride_multiple", 32))
    side = -(-TILE_PX // stride) * stride if tile is None else tile
    if side % stride:
        raise OptionError(f"--tile is {side}, expected a multiple of {stride}, the stride of the network")
    field = find_receptive_field(network)
    card = _build_card(metadata, choose_tiling(side, stride, max(field.width_px, field.height_px) // 2), side)
    predictor = KerasPredictor(network, card, metadata.normalization)
    return TiledModel(predictor, f"keras {keras.backend.backend()}", shrinks=True)


def choose_tiling(side: int, stride: int, reach: int) -> Tiling:
    """Return how tiles overlap: halos as wide as the network sees, at most a quarter of the tile.

    With all of it, tiles give what the whole image gives; see `fit_tiling`.

    Args:
        side: Of the tile, a multiple of `stride`.
        stride: The step is a multiple of it.
        reach: How far from a pixel the network looks.
    """
    return fit_tiling(side, stride=stride, halo=min(reach, side // HALO_SHARE))


def lay_grid(model: TiledModel, m_size: tuple[int, int]) -> Grid:
    """Return the tiles over an image of `m_size` (width, height)."""
    width, height = model.card.patch_size_pixels
    return Grid(_lay_axis(model, m_size[0], width), _lay_axis(model, m_size[1], height))


def iter_image(model: TiledModel, rgb: Pixels) -> Iterator[Band]:
    """Yield finished rows of probabilities of an image, from top to bottom.

    Args:
        model: What predicts.
        rgb: `uint8` `(h, w, 3)` at the model's um/px, equalised if the model expects that.
    """
    card, predictor = model.card, model.predictor
    slide = ArraySlide(rgb, card.spacing_um_px)
    scale = plan_scale(slide, card.spacing_um_px, tolerance=card.spacing_tolerance)
    grid = lay_grid(model, scale.m_size)
    plan = Plan(
        grid=grid,
        runs=np.ones((grid.y.count, grid.x.count), np.bool_),
        blend=card.tiling.blend,
        # a batch is filled up with empty tiles
        batch_size=predictor.batch_size or min(choose_batch_size(predictor, grid.tile_size), grid.count),
        readers=1,
    )
    yield from iter_bands(ScaledSlide(slide, scale), predictor, plan)


def describe_model(path: Path, model: TiledModel) -> dict[str, Any]:
    """Return what an evaluation says of its model, ready for JSON."""
    card = model.card
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": card.architecture,
        "precision": card.precision,
        "runner": model.runner,
        "tile_pixels": list(card.patch_size_pixels),
        "halo_px": card.tiling.halo_px,
        "overlap_px": card.tiling.overlap_px,
    }


def _open_keras(path: Path, tile: int | None) -> TiledModel:
    metadata = require_metadata(path)
    from histoseg_train.modelfile import load_model

    return wrap_network(load_model(path), metadata, tile=tile)


def _build_card(metadata: KerasMetadata, tiling: Tiling, side: int) -> ModelCard:
    return ModelCard(
        architecture=metadata.architecture,
        class_names=metadata.class_names,
        class_colors=metadata.class_colors,
        spacing_um_px=metadata.spacing_um_px,
        patch_size_pixels=(side, side),
        input=InputSpec(
            "image", "NHWC", "uint8", "RGB", (None, None, None, 3), equalization=metadata.equalization
        ),
        output=OutputSpec("probabilities", "NHWC", "softmax", len(metadata.class_names)),
        tiling=tiling,
        precision="fp32",
        training=metadata.training,
    )


def _lay_axis(model: TiledModel, length: int, side: int) -> Axis:
    tiling = model.card.tiling
    stride = tiling.stride_multiple
    if model.shrinks and length <= side:
        return plan_axis(length, -(-length // stride) * stride, overlap=0, halo=0, stride_multiple=stride)
    return plan_axis(
        length,
        side,
        overlap=tiling.overlap_px,
        halo=tiling.halo_px,
        stride_multiple=stride,
        crop=tiling.blend == "crop",
    )
