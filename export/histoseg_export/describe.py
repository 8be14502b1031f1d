"""What the model is: from the metadata in the file, from the flags, and from its first and last layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from histoseg.card import Activation, ColorSpace, InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.equalize import Equalization
from histoseg.errors import ModelError
from histoseg_export.anykeras import CHANNELS_LAST, is_model, maker_of, source_of
from histoseg_export.classes import fill_colors
from histoseg_export.firstops import explain_own_scaling

if TYPE_CHECKING:
    from histoseg.transform import Normalization
    from histoseg_train.metadata import KerasMetadata

INPUT_NAME = "image"
OUTPUT_NAME = "probabilities"

# layers that hand probabilities on as probabilities, of the same classes
_PASSIVE = frozenset(
    {
        "Cropping2D",
        "Dropout",
        "Identity",
        "Permute",
        "Reshape",
        "Resize",
        "Resizing",
        "SpatialDropout2D",
        "UpSampling2D",
    }
    | {"ActivityRegularization", "GaussianDropout", "GaussianNoise"}
)
# what a last activation makes of values, where its name is none of a card's
_SYNONYMS: dict[str, Activation] = {"linear": "logits", "hard_sigmoid": "sigmoid"}
_SAY_ACTIVATION = "say what its output is with --activation, or take an earlier layer's with --output"
# for activations whose labels are known
_ADVICE = {
    "tanh": "--activation logits takes 0 for the border between two classes, the highest value of several",
}
_LINEAR_LAYERS = ("Add", "BatchNormalization", "Conv", "Dense", "DepthwiseConv", "SeparableConv")


@dataclass(frozen=True)
class ExportOptions:
    """What the caller says about the model; `None` where the file should say it."""

    tile: int | None = None
    """Side of the square tile, in model pixels."""
    class_names: tuple[str, ...] | None = None
    class_colors: tuple[str, ...] | None = None
    spacing_um_px: float | None = None
    normalization: Normalization | None = None
    activation: Literal["auto", "softmax", "sigmoid", "logits"] = "auto"
    color_space: ColorSpace = "device"
    threshold: float | None = None
    """Of two classes: from which probability of the second one a pixel is of it; `None`: the likelier one."""


@dataclass(frozen=True)
class Description:
    """All that a card says about a model, but what is measured."""

    architecture: str
    class_names: tuple[str, ...]
    class_colors: tuple[str, ...]
    spacing_um_px: float
    normalization: Normalization
    tile: tuple[int, int]
    """Width and height, in model pixels."""
    activation: Activation
    """What the Keras model's own output is."""
    channels: int
    color_space: ColorSpace = "device"
    equalization: Equalization | None = None
    grey: bool = False
    """Whether the model takes one channel."""
    clip: bool = False
    """Whether the output is cut off at 0 and 1: a network that ends in a rectifier promises neither."""
    threshold: float | None = None
    """As in `ExportOptions`."""
    training: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What had to be assumed, in words for people."""


def describe_model(model: Any, metadata: KerasMetadata | None, options: ExportOptions) -> Description:
    """Put together what the file and the caller say; the caller's word wins.

    Args:
        model: The loaded `keras.Model`.
        metadata: What `histoseg-train` stored in the file, or `None`.
        options: The caller's flags.

    Raises:
        ModelError: Something needed is said nowhere, or does not fit the model; the message names the flag.
    """
    notes: list[str] = []
    channels = int(model.outputs[0].shape[3])
    names, colors = _choose_classes(metadata, options, channels, notes)
    activation, clip = _choose_activation(model, options, channels, notes)
    if model.inputs[0].shape[3] == 1:
        notes.append(
            "the network takes grey images: the graph makes grey of RGB (0.299 R + 0.587 G + 0.114 B)"
        )
    tile = _choose_tile(model, metadata, options)
    return Description(
        architecture=metadata.architecture if metadata else str(model.name),
        class_names=names,
        class_colors=colors,
        spacing_um_px=_choose_spacing(metadata, options, notes),
        normalization=_choose_normalization(model, tile, metadata, options, notes),
        tile=tile,
        activation=activation,
        channels=channels,
        color_space=options.color_space,
        equalization=metadata.equalization if metadata else None,
        grey=model.inputs[0].shape[3] == 1,
        clip=clip,
        threshold=_choose_threshold(options, len(names)),
        training=dict(metadata.training) if metadata else {},
        notes=tuple(notes),
    )


def build_card(
    description: Description, *, tiling: Tiling, parity: dict[str, Any], provenance: dict[str, Any]
) -> ModelCard:
    """Return the card of the exported file: uint8 RGB NHWC in, probabilities NHWC out.

    Raises:
        CardError: A value is impossible; the message names the field.
    """
    width, height = description.tile
    source = description.activation
    given: Activation = (
        source if source != "logits" else ("sigmoid" if description.channels == 1 else "softmax")
    )
    return ModelCard(
        architecture=description.architecture,
        class_names=description.class_names,
        class_colors=description.class_colors,
        spacing_um_px=description.spacing_um_px,
        patch_size_pixels=description.tile,
        input=InputSpec(
            INPUT_NAME,
            "NHWC",
            "uint8",
            "RGB",
            (None, height, width, 3),
            description.color_space,
            description.equalization,
        ),
        output=OutputSpec(OUTPUT_NAME, "NHWC", given, description.channels, description.threshold),
        tiling=tiling,
        precision="fp32",
        parity=parity,
        training=description.training,
        provenance=provenance,
    )


def detect_activation(model: Any) -> str:
    """Tell from the last layer what the model's output is.

    Returns:
        `softmax`, `sigmoid`, `logits`; or the name of another activation, empty when there is no telling.
    """
    return find_activation(model.outputs[0])


def find_activation(tensor: Any) -> str:
    """Return what the values of a symbolic tensor are, in the words of `detect_activation`."""
    while True:
        layer = maker_of(tensor)
        if is_model(layer):
            tensor = layer.outputs[0]
        elif _is_passive(layer):
            tensor = source_of(layer)
        elif type(layer).__name__ == "Average":  # of probabilities, it gives probabilities
            found = {find_activation(item) for item in layer.input}
            return found.pop() if len(found) == 1 else ""
        else:
            name = _activation_name(layer)
            return _SYNONYMS.get(name, name)


def read_own_metadata(path: Path) -> KerasMetadata | None:
    """Return what `histoseg-train` stored in a model file, or `None`.

    Raises:
        ModelError: The metadata are there but wrong.
    """
    from histoseg_train.metadata import read_metadata

    return read_metadata(path) if path.is_file() else None


def _is_passive(layer: Any) -> bool:
    """Tell whether a layer hands on what it is given, classes last."""
    kind = type(layer).__name__
    if layer.name == CHANNELS_LAST:
        return True
    if kind in ("Reshape", "Permute"):
        return bool(layer.output.shape[-1] == source_of(layer).shape[-1])
    if kind == "TFOpLambda":
        return _function_of(layer).endswith(("image.resize", "image.resize_bilinear", "identity", "reshape"))
    return kind in _PASSIVE or (kind == "Activation" and _activation_name(layer) == "linear")


def _function_of(layer: Any) -> str:
    """Return the name of the TensorFlow function that a layer of Keras 2 stands for."""
    return str(layer.get_config().get("function", ""))


def _activation_name(layer: Any) -> str:
    kind = type(layer).__name__
    if kind == "TimeDistributed":
        return _activation_name(layer.layer)
    if hasattr(layer, "histoseg_activation"):
        return str(layer.histoseg_activation)
    activation = getattr(layer, "activation", None)
    if activation is not None:
        return str(getattr(activation, "__name__", type(activation).__name__)).lower()
    if kind == "TFOpLambda":
        kind = _function_of(layer).rpartition(".")[2].capitalize()
    if kind.startswith(_LINEAR_LAYERS):
        return "linear"
    return kind.lower() if kind in ("ReLU", "Relu", "Sigmoid", "Softmax") else ""


def _choose_threshold(options: ExportOptions, classes: int) -> float | None:
    """Return the probability from which a pixel is of the second class.

    Raises:
        ModelError: There are more than two classes.
    """
    if options.threshold is not None and classes != 2:
        raise ModelError(f"--threshold is given for {classes} classes, expected two; leave it away")
    return options.threshold


def _choose_activation(
    model: Any, options: ExportOptions, channels: int, notes: list[str]
) -> tuple[Activation, bool]:
    """Return what the output is, and whether it has to be cut off at 0 and 1.

    Raises:
        ModelError: The last layer's activation is none that segmentation knows.
    """
    if options.activation != "auto":
        return options.activation, False
    name = detect_activation(model)
    if name == "softmax" and channels == 1:
        raise ModelError(
            "the network ends in softmax over one channel, which is 1 everywhere, expected sigmoid, or a "
            "channel for the background, too; train it again"
        )
    if name in get_args(Activation):
        return name, False  # type: ignore[return-value]
    if name == "relu" and channels == 1:
        notes.append(
            "the network ends in a rectifier: its values are taken for probabilities and cut off at 1 "
            "(--activation)"
        )
        return "sigmoid", True
    layer = maker_of(model.outputs[0])
    raise ModelError(
        f"the last layer '{layer.name}' ({type(layer).__name__}) gives {name or 'an unknown activation'}, "
        f"expected softmax, sigmoid or linear; {_ADVICE.get(name, _SAY_ACTIVATION)}"
    )


def _choose_classes(
    metadata: KerasMetadata | None, options: ExportOptions, channels: int, notes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    expected = max(channels, 2)
    if options.class_names is not None and options.class_colors is not None:
        names, colors = options.class_names, options.class_colors
    elif metadata:
        names, colors = metadata.class_names, metadata.class_colors
    else:
        names = ("background", *(f"class_{index}" for index in range(1, expected)))
        colors = fill_colors([""] * expected)
        notes.append(f"the file names no classes: called {', '.join(names)} (--classes renames them)")
    if len(names) != expected:
        raise ModelError(
            f"{len(names)} classes ({', '.join(names)}) for an output of {channels} channels, expected "
            f"{expected} names, background included (--classes)"
        )
    return names, colors


def _choose_spacing(metadata: KerasMetadata | None, options: ExportOptions, notes: list[str]) -> float:
    given = options.spacing_um_px
    if given is None and metadata is None:
        raise ModelError(
            "the file does not say at which um/px its images were; "
            "say it with --spacing (0.5 for 20x, 0.25 for 40x)"
        )
    if given is None:
        assert metadata is not None
        return metadata.spacing_um_px
    if metadata and metadata.spacing_um_px != given:
        notes.append(f"--spacing {given:g} replaces the file's {metadata.spacing_um_px:g} um/px")
    return given


def _choose_normalization(
    model: Any,
    tile: tuple[int, int],
    metadata: KerasMetadata | None,
    options: ExportOptions,
    notes: list[str],
) -> Normalization:
    dtype = str(getattr(model.inputs[0].dtype, "name", model.inputs[0].dtype))
    if "int" in dtype and options.normalization not in (None, "none"):
        raise ModelError(
            f"the network takes {dtype} pixels, expected --normalize none instead of {options.normalization}"
        )
    if options.normalization:
        if metadata and metadata.normalization != options.normalization:
            notes.append(f"--normalize {options.normalization} replaces the file's {metadata.normalization}")
        return options.normalization
    if metadata:
        return metadata.normalization
    found = explain_own_scaling(model, tile)
    if found:
        notes.append(f"images are not normalised before the network, which {found} (--normalize)")
        return "none"
    notes.append("the file does not say how its images were normalised: taken as unit, x / 255 (--normalize)")
    return "unit"


def _choose_tile(model: Any, metadata: KerasMetadata | None, options: ExportOptions) -> tuple[int, int]:
    if options.tile is not None:
        return options.tile, options.tile
    _, height, width, _ = model.inputs[0].shape
    own = metadata.patch_size_pixels if metadata else (None, None)
    chosen = (width or own[0], height or own[1])
    if None in chosen:
        raise ModelError(
            "the model takes images of any size; say the size of a tile with --tile (for example 512)"
        )
    return int(chosen[0]), int(chosen[1])  # type: ignore[arg-type]
