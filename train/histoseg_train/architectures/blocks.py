"""What the architectures are made of: functions from tensor to tensor, each layer named after its block."""

from __future__ import annotations

from typing import Any

# Moving statistics must settle within short runs.
BN_MOMENTUM = 0.95


def conv_unit(
    features: Any, filters: int, name: str, *, size: int = 3, strides: int = 1, rate: int = 1
) -> Any:
    """Return convolution, batch normalisation and ReLU; `rate` spreads the kernel."""
    from keras import layers

    conv = layers.Conv2D(
        filters,
        size,
        strides=strides,
        dilation_rate=rate,
        padding="same",
        use_bias=False,
        name=f"{name}_conv",
    )
    return normalize(conv(features), name)


def separable_unit(features: Any, filters: int, name: str, *, rate: int = 1) -> Any:
    """Return a 3x3 convolution of each channel, then one across them, each normalised and rectified."""
    from keras import layers

    depthwise = layers.DepthwiseConv2D(
        3, dilation_rate=rate, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )
    features = normalize(depthwise(features), f"{name}_depthwise")
    return conv_unit(features, filters, name, size=1)


def conv_block(features: Any, filters: int, name: str, *, units: int = 2) -> Any:
    """Return the features after some 3x3 units."""
    for index in range(1, units + 1):
        features = conv_unit(features, filters, f"{name}_{index}")
    return features


def normalize(features: Any, name: str) -> Any:
    """Return batch normalisation and ReLU."""
    from keras import layers

    features = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_norm")(features)
    return layers.ReLU(name=f"{name}_relu")(features)


def up_join(features: Any, skips: list[Any], filters: int, name: str) -> Any:
    """Return the features at twice the size, learned, beside the skips of that size.

    Transposed convolutions of size 2 and stride 2 can be traced with unknown height and width and become one
    ONNX node.
    """
    from keras import layers

    raised = layers.Conv2DTranspose(filters, 2, strides=2, name=f"{name}_up")(features)
    return layers.Concatenate(name=f"{name}_join")([*skips, raised]) if skips else raised


def enlarge(features: Any, factor: int, name: str) -> Any:
    """Return the features at `factor` times the size, interpolated between pixel centres.

    It has no weights, it is one `Resize` node in ONNX with kernels everywhere, and only TensorFlow's graphs
    of unknown height and width cannot hold it: the exporter fixes both. A transposed convolution of a fixed
    kernel would have no such limit, but Keras has none by channel, and across channels it costs more than the
    rest of a decoder.
    """
    from keras import layers

    if factor == 1:
        return features
    return layers.UpSampling2D(factor, interpolation="bilinear", name=name)(features)


def classify(logits: Any) -> Any:
    """Return probabilities, `float32` under any precision policy."""
    from keras import layers

    return layers.Softmax(dtype="float32", name="probabilities")(logits)
