"""What a model expects and gives: the `ModelCard`, one JSON document inside the ONNX file.

The card travels as `metadata_props["histoseg"]` of an ONNX model. A model made elsewhere takes the same
document as a sidecar file. The card says all that is needed to run the model right: um/px, layout, dtype,
what the output means, and how tiles must overlap.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from histoseg.equalize import Equalization
from histoseg.errors import CardError
from histoseg.jsonclass import from_json, to_json

METADATA_KEY = "histoseg"
SCHEMA_VERSION = 1

Layout = Literal["NHWC", "NCHW"]
Activation = Literal["softmax", "sigmoid", "logits"]
Blend = Literal["cosine", "crop", "gaussian", "constant"]
Precision = Literal["fp32", "fp16", "int8"]
ColorSpace = Literal["device", "sRGB"]


@dataclass(frozen=True)
class InputSpec:
    """The one input tensor of a model."""

    name: str
    layout: Layout
    dtype: Literal["uint8", "float32", "float16"]
    channel_order: Literal["RGB", "BGR"]
    shape: tuple[int | None, ...]
    """Four sizes in `layout` order; `None` where the model takes any."""
    color_space: ColorSpace = "device"
    """What the model's training pixels were in: `device` is pixels as they are stored in the slide, `sRGB`
    is pixels converted by the slide's ICC profile (a slide without one counts as sRGB already)."""
    equalization: Equalization | None = None
    """What is done to pixels at the model's um/px, before any transform."""


@dataclass(frozen=True)
class TransformStep:
    """One step the runtime applies to RGB pixels before the model: `(x * scale - mean) / std` per channel.

    Models exported by histoseg need none: cast and normalisation are in their graph.
    """

    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class OutputSpec:
    """The output tensor that holds the segmentation.

    `activation` says what the values are: probabilities that came from `softmax` or `sigmoid`, or
    `logits`, to which the runtime applies softmax (or sigmoid when there is one channel).
    """

    name: str
    layout: Layout
    activation: Activation
    channels: int
    """One for each class; or 1, the second class's value, for a two-class model."""
    threshold: float | None = None
    """Two-class models only: probability of the second class from which a pixel belongs to it."""


@dataclass(frozen=True)
class Tiling:
    """How tiles must lie for this model; sizes in model pixels."""

    stride_multiple: int
    halo_px: int
    overlap_px: int
    blend: Blend = "cosine"
    global_context: bool = False


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to run a segmentation model right.

    Raises:
        CardError: A value is impossible; the message names the field.
    """

    architecture: str
    class_names: tuple[str, ...]
    class_colors: tuple[str, ...]
    spacing_um_px: float
    patch_size_pixels: tuple[int, int]
    """Tile width and height, in model pixels."""
    input: InputSpec
    output: OutputSpec
    tiling: Tiling
    precision: Precision
    schema_version: int = SCHEMA_VERSION
    task: Literal["segmentation"] = "segmentation"
    background_index: int = 0
    spacing_tolerance: float = 0.05
    transform: tuple[TransformStep, ...] = ()
    providers: tuple[str, ...] = ("cpu", "cuda", "openvino", "tensorrt")
    """Those that suit the precision; the runtime refuses its other ones."""
    parity: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    intended_use: str = "Research use only. Not for diagnosis."

    def __post_init__(self) -> None:
        _check_version(self)
        _check_classes(self)
        _check_tensors(self)
        _check_tiling(self)


def card_from_text(text: str) -> ModelCard:
    """Parse the JSON text of a card.

    Raises:
        CardError: The text is not JSON, or a field is unknown, missing, mistyped or impossible.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"the model card is not JSON ({error}): expected one JSON object") from error
    return from_json(ModelCard, document)


def card_to_text(card: ModelCard) -> str:
    """Return the card as indented JSON text that `card_from_text` reads back unchanged."""
    return json.dumps(to_json(card), indent=2)


def load_card(path: Path) -> ModelCard:
    """Read a sidecar card.

    Raises:
        CardError: The file cannot be read, or is not a valid card.
    """
    try:
        return card_from_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CardError(f"{path}: no such file, expected a model card (JSON); check --card") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: cannot read the model card ({error})") from error
    except CardError as error:
        raise CardError(f"{path}: {error}") from error


def _require(ok: bool, name: str, found: object, expected: str) -> None:
    if not ok:
        raise CardError(f"field '{name}' is {found}, expected {expected}")


def _check_version(card: ModelCard) -> None:
    _require(card.schema_version == SCHEMA_VERSION, "schema_version", card.schema_version,
             f"{SCHEMA_VERSION}: update histoseg, or export the model again")  # fmt: skip


def _check_classes(card: ModelCard) -> None:
    count = len(card.class_names)
    _require(2 <= count <= 255, "class_names", f"{count} long", "2 to 255 names, background included")
    _require(len(set(card.class_names)) == count, "class_names", card.class_names, "names that differ")
    _require(len(card.class_colors) == count, "class_colors", f"{len(card.class_colors)} long",
             f"{count}, one for each class")  # fmt: skip
    _check_colors(card)
    _require(
        0 <= card.background_index < count, "background_index", card.background_index, f"0 to {count - 1}"
    )
    _require(card.spacing_um_px > 0, "spacing_um_px", card.spacing_um_px, "more than 0")
    _require(0 <= card.spacing_tolerance < 0.5, "spacing_tolerance", card.spacing_tolerance, "0 to 0.5")


def _check_colors(card: ModelCard) -> None:
    """Refuse colours that are none, and two classes that nobody could tell apart."""
    first: dict[str, str] = {}
    for i, (name, color) in enumerate(zip(card.class_names, card.class_colors, strict=True)):
        _require(re.fullmatch(r"#[0-9a-fA-F]{6}", color) is not None, f"class_colors[{i}]", repr(color),
                 "#rrggbb")  # fmt: skip
        other = first.setdefault(color.lower(), name)
        _require(other == name, "class_colors", f"{color} for both {other!r} and {name!r}",
                 "colours that differ; give one of them another")  # fmt: skip


def _check_tensors(card: ModelCard) -> None:
    shape = card.input.shape
    _require(len(shape) == 4, "input.shape", list(shape), "four sizes")
    _require(all(size is None or size > 0 for size in shape), "input.shape", list(shape), "sizes above 0")
    channels = shape[3 if card.input.layout == "NHWC" else 1]
    _require(channels == 3, "input.shape", list(shape), f"3 channels in {card.input.layout} order")
    width, height = card.patch_size_pixels
    _require(min(width, height) >= 1, "patch_size_pixels", [width, height], "sizes above 0")
    fixed = (shape[1], shape[2]) if card.input.layout == "NHWC" else (shape[2], shape[3])
    _require(all(want in (None, got) for want, got in zip(fixed, (height, width), strict=True)),
             "patch_size_pixels", [width, height], f"the input's size, {fixed[1]} x {fixed[0]}")  # fmt: skip
    count, channels = len(card.class_names), card.output.channels
    _require(channels == count or (channels == 1 and count == 2), "output.channels", channels,
             f"{count}, one for each class (or 1 for two classes)")  # fmt: skip
    threshold = card.output.threshold
    _require(threshold is None or 0 < threshold < 1, "output.threshold", threshold, "null or between 0 and 1")
    _require(threshold is None or count == 2, "output.threshold", threshold,
             f"null for {count} classes")  # fmt: skip
    for i, step in enumerate(card.transform):
        _require(all(std > 0 for std in step.std), f"transform[{i}].std", list(step.std), "above 0")


def _check_tiling(card: ModelCard) -> None:
    tiling, side = card.tiling, min(card.patch_size_pixels)
    _require(tiling.stride_multiple >= 1, "tiling.stride_multiple", tiling.stride_multiple, "at least 1")
    _require(tiling.halo_px >= 0, "tiling.halo_px", tiling.halo_px, "at least 0")
    _require(tiling.overlap_px >= 2 * tiling.halo_px, "tiling.overlap_px", tiling.overlap_px,
             f"at least twice halo_px ({tiling.halo_px})")  # fmt: skip
    _require(side - tiling.overlap_px >= tiling.stride_multiple, "tiling.overlap_px", tiling.overlap_px,
             f"at most {side - tiling.stride_multiple}, so that tiles of {side} px advance")  # fmt: skip
