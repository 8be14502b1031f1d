"""Encoders: a plain one, and the classifiers of `keras.applications` with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoseg.errors import ModelError
from histoseg.transform import Normalization
from histoseg_train.architectures.atrous import rebuild_encoder
from histoseg_train.architectures.blocks import conv_unit
from histoseg_train.kerasfile import read_h5_text, summarize_error

IMAGENET = "imagenet"


@dataclass(frozen=True)
class Encoder:
    """A classifier of `keras.applications`."""

    function: str
    """Its name there."""
    features: tuple[str, ...]
    """The layers that end strides 2, 4, 8, 16 and 32, named as `rebuild_encoder` names them."""
    normalization: Normalization
    """What its published weights were trained with."""


ENCODERS = {
    "resnet50": Encoder(
        "ResNet50",
        ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
        "caffe",
    ),
    "resnet101": Encoder(
        "ResNet101",
        ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block23_out", "conv5_block3_out"),
        "caffe",
    ),
    "xception": Encoder(
        "Xception",
        (
            "block1_conv2_act",
            "block3_sepconv2_bn",
            "block4_sepconv2_bn",
            "block13_sepconv2_bn",
            "block14_sepconv2_act",
        ),
        "symmetric",
    ),
    "inception_resnet_v2": Encoder(
        "InceptionResNetV2",
        ("encoder_activation_3", "encoder_activation_5", "block35_10_ac", "block17_20_ac", "conv_7b_ac"),
        "symmetric",
    ),
    "mobilenet_v2": Encoder(
        "MobileNetV2",
        (*(f"block_{number}_expand_relu" for number in (1, 3, 6, 13)), "out_relu"),
        "symmetric",
    ),
}  # fmt: skip


def build_features(
    name: str, image: Any, *, weights: str | None = None, depth: int = 5, output_stride: int = 32
) -> list[Any]:
    """Build a classifier's layers on an image.

    Args:
        name: One of `ENCODERS`.
        image: A Keras tensor `(n, h, w, channels)`.
        weights: `"imagenet"` downloads those that Keras publishes, for three channels; the path of an HDF5
            file of them; or `None` for random ones.
        depth: How many strides to return features for, 1 to 5.
        output_stride: Features are no coarser; where a stride is taken out, kernels are spread.

    Returns:
        Features at strides 2, 4, 8, 16 and 32, as many as `depth`.

    Raises:
        ModelError: The weights cannot be had, or do not fit.
    """
    spec = ENCODERS[name]
    classifier = _load_classifier(spec.function, weights, channels=image.shape[-1])
    encoder = rebuild_encoder(
        classifier, image, output_stride=output_stride, keep_weights=weights is not None
    )
    return [encoder.get_layer(layer).output for layer in spec.features[:depth]]


def build_plain_features(image: Any, width: int, *, output_stride: int) -> list[Any]:
    """Build two 3x3 units for each of five strides, strided between them, or spread once they may not be.

    Args:
        image: A Keras tensor `(n, h, w, channels)`.
        width: Filters at stride 2; each stride has twice as many, up to eight times.
        output_stride: Features are no coarser.

    Returns:
        Features at strides 2, 4, 8, 16 and 32, or what takes their place.
    """
    features, levels = image, []
    for level in range(5):
        stride = 2 ** (level + 1)
        rate = max(1, stride // output_stride)
        filters = width * min(2**level, 8)
        name = f"enc{level + 1}"
        features = conv_unit(
            features, filters, f"{name}_in", strides=1 if rate > 1 else 2, rate=max(1, rate // 2)
        )
        levels.append(conv_unit(features, filters, f"{name}_out", rate=rate))
        features = levels[-1]
    return levels


def load_vgg_weights(model: Any, weights: str, convolutions: tuple[int, ...]) -> None:
    """Give the convolutions of a SegNet's encoder those of VGG16.

    VGG16 has biases where the encoder is normalised: they become the normalisation's shift, so that the
    encoder starts as VGG16 (up to the normalisation's epsilon).

    Args:
        model: Its units are named `enc1_1`, `enc1_2` and on.
        weights: As for `build_features`.
        convolutions: How many units each level has.

    Raises:
        ModelError: The weights cannot be had, or do not fit.
    """
    vgg = _load_classifier("VGG16", weights, channels=model.inputs[0].shape[-1])
    for level, count in enumerate(convolutions, start=1):
        for index in range(1, count + 1):
            kernel, bias = vgg.get_layer(f"block{level}_conv{index}").get_weights()
            conv, norm = (model.get_layer(f"enc{level}_{index}_{part}") for part in ("conv", "norm"))
            if tuple(conv.kernel.shape) != kernel.shape:
                raise ModelError(
                    f"--weights {weights}: VGG16 has {kernel.shape[-1]} filters at level {level}, the "
                    f"network {conv.kernel.shape[-1]}; expected a SegNet of width 64"
                )
            conv.set_weights([kernel])
            gamma, _, mean, variance = norm.get_weights()
            norm.set_weights([gamma, bias, mean, variance])


def _load_classifier(function: str, weights: str | None, *, channels: int) -> Any:
    import keras

    build = getattr(keras.applications, function)
    if weights == IMAGENET and channels != 3:
        raise ModelError(f"--weights {IMAGENET}: they are for 3 channels, the network takes {channels}")
    if weights == IMAGENET:
        with _explaining(
            f"--weights {IMAGENET}: cannot be downloaded", "fetch them elsewhere, then --weights FILE"
        ):
            return build(include_top=False, weights=IMAGENET, input_shape=(None, None, 3))
    model = build(include_top=False, weights=None, input_shape=(None, None, channels))
    if weights is not None:
        _check_weights(Path(weights))
        with _explaining(
            f"--weights {weights}: do not fit {function}", "expected those of its own, without the top"
        ):
            model.load_weights(weights)
    return model


def _check_weights(path: Path) -> None:
    """Refuse what is no HDF5 file of weights, or takes them from other files, before Keras opens it."""
    if not path.is_file():
        raise ModelError(f"--weights {path}: no such file; expected {IMAGENET}, none, or an HDF5 file")
    read_h5_text(path)


@contextmanager
def _explaining(words: str, advice: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Keras raises plain exceptions on a failed download
        raise ModelError(f"{words} ({summarize_error(error)}); {advice}") from error
