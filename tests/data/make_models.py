"""Build the kilobyte-sized ONNX models that the runtime's tests run, each with its model card.

`python tests/data/make_models.py` writes them beside this file, and `probe.onnx` where the package keeps its
models; the same bytes every time. It needs `onnx` and `histoseg`; the tests that read the files need neither
`onnx` nor TensorFlow.

| file | what it computes |
|---|---|
| constant.onnx | three classes, probabilities 0.2, 0.5, 0.3 at every pixel |
| threshold.onnx | two classes, from the darkness of the pixel alone: no context |
| conv.onnx | two classes, three 3x3 convolutions: receptive-field radius 3 |
| unet.onnx | two classes, one pooling and one skip: stride multiple 2, receptive-field radius 5 |
| nchw_float_logits.onnx | a foreign model: float32 NCHW, batch 1, two logits |
| probe.onnx | what `histoseg-doctor` runs: one convolution, 3x3 means of red and of blue as logits |
| no_card.onnx | threshold.onnx without a card |
| bad_card.onnx | threshold.onnx with a negative um/px in its card |
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from histoseg.card import METADATA_KEY, InputSpec, ModelCard, OutputSpec, Tiling, TransformStep, card_to_text
from histoseg.models import probe_model

TILE = 64
TWO_CLASSES = (("background", "nucleus"), ("#ffffff", "#1b7f3b"))
THREE_CLASSES = (("background", "tissue", "nucleus"), ("#ffffff", "#d98cb3", "#4b2e83"))
NHWC = ["batch", "height", "width", 3]


def _constant(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def _conv(rng: np.random.Generator, source: str, name: str, *, inputs: int, filters: int) -> tuple:
    """Return the node and weights of a 3x3 convolution with `same` padding."""
    weights = (rng.standard_normal((filters, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))).round(3)
    biases = (rng.standard_normal(filters) * 0.1).round(3)
    node = helper.make_node(
        "Conv", [source, f"{name}_w", f"{name}_b"], [name], name=name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    return node, [_constant(f"{name}_w", weights), _constant(f"{name}_b", biases)]


def _model(name: str, nodes: list, constants: list, *, image: tuple, output: tuple) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*image)],
        [helper.make_tensor_value_info(*output)],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="histoseg-tests"
    )
    model.ir_version = 8
    return model


def _nhwc_model(name: str, nodes: list, constants: list, *, classes: int) -> onnx.ModelProto:
    output = ("probabilities", TensorProto.FLOAT, [*NHWC[:3], classes])
    return _model(name, nodes, constants, image=("image", TensorProto.UINT8, NHWC), output=output)


def _read_image() -> tuple[list, list]:
    """Return nodes from uint8 NHWC `image` to `unit`, float32 NCHW in 0 to 1."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float_image"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float_image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "per_level"], ["unit"]),
    ]
    return nodes, [_constant("per_level", 1 / 255)]


def _write_probabilities(logits: str) -> list:
    return [
        helper.make_node("Softmax", [logits], ["class_planes"], axis=1),
        helper.make_node("Transpose", ["class_planes"], ["probabilities"], perm=[0, 2, 3, 1]),
    ]


def build_constant() -> onnx.ModelProto:
    """Give 0.2, 0.5, 0.3 at every pixel, whatever it holds."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float_image"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float_image"], ["mean"], axes=[3], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "values"], ["probabilities"]),
    ]
    constants = [_constant("zero", 0.0), _constant("values", [0.2, 0.5, 0.3])]
    return _nhwc_model("constant", nodes, constants, classes=3)


def build_threshold() -> onnx.ModelProto:
    """Give `p(nucleus) = sigmoid(20 * (0.6 - mean / 255))` of each pixel."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float_image"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float_image"], ["mean"], axes=[3], keepdims=1),
        helper.make_node("Mul", ["mean", "slope"], ["falling"]),
        helper.make_node("Add", ["falling", "offset"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["nucleus"]),
        helper.make_node("Sub", ["one", "nucleus"], ["background"]),
        helper.make_node("Concat", ["background", "nucleus"], ["probabilities"], axis=3),
    ]
    constants = [_constant("slope", -20 / 255), _constant("offset", 12.0), _constant("one", 1.0)]
    return _nhwc_model("threshold", nodes, constants, classes=2)


def build_conv() -> onnx.ModelProto:
    """Stack three 3x3 convolutions with four filters: each pixel sees three pixels around it."""
    rng = np.random.default_rng(3)
    nodes, constants = _read_image()
    source = "unit"
    for index, (inputs, filters) in enumerate([(3, 4), (4, 4), (4, 2)]):
        node, weights = _conv(rng, source, f"conv{index}", inputs=inputs, filters=filters)
        nodes.append(node)
        constants += weights
        source = f"conv{index}"
        if index < 2:
            nodes.append(helper.make_node("Relu", [source], [f"relu{index}"]))
            source = f"relu{index}"
    return _nhwc_model("conv", nodes + _write_probabilities(source), constants, classes=2)


def build_unet() -> onnx.ModelProto:
    """Convolve, pool by 2, convolve, upsample, join the skip, convolve."""
    rng = np.random.default_rng(5)
    nodes, constants = _read_image()
    encode, encode_weights = _conv(rng, "unit", "encode", inputs=3, filters=4)
    middle, middle_weights = _conv(rng, "pooled", "middle", inputs=4, filters=4)
    head, head_weights = _conv(rng, "joined", "head", inputs=8, filters=2)
    up_weights = (rng.standard_normal((4, 4, 2, 2)) * 0.5).round(3)
    nodes += [
        encode,
        helper.make_node("Relu", ["encode"], ["skip"]),
        helper.make_node("MaxPool", ["skip"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        middle,
        helper.make_node("Relu", ["middle"], ["deep"]),
        helper.make_node("ConvTranspose", ["deep", "up_w"], ["up"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["skip", "up"], ["joined"], axis=1),
        head,
    ]
    constants += encode_weights + middle_weights + head_weights + [_constant("up_w", up_weights)]
    return _nhwc_model("unet", nodes + _write_probabilities("head"), constants, classes=2)


def build_nchw_float_logits() -> onnx.ModelProto:
    """Convolve once, float32 NCHW in and two logits out, one image at a time."""
    node, weights = _conv(np.random.default_rng(7), "planes", "logits", inputs=3, filters=2)
    shape = [1, 3, "height", "width"]
    return _model(
        "nchw_float_logits", [node], weights, image=("planes", TensorProto.FLOAT, shape),
        output=("logits", TensorProto.FLOAT, [1, 2, *shape[2:]]),
    )  # fmt: skip


def build_probe() -> onnx.ModelProto:
    """Average red, and blue, over 3x3 pixels: one node, a convolution, so that cuDNN has to work.

    Float32 NCHW in, two logits out; beyond the border everything is 0. What it gives is known without
    running a model: `histoseg.probe.predict_probe` says it with NumPy.
    """
    weights = np.zeros((2, 3, 3, 3))
    weights[0, 0] = weights[1, 2] = 1 / 9
    node = helper.make_node("Conv", ["planes", "means"], ["logits"], name="conv", pads=[1, 1, 1, 1])
    return _model(
        "probe", [node], [_constant("means", weights)],
        image=("planes", TensorProto.FLOAT, ["batch", 3, "height", "width"]),
        output=("logits", TensorProto.FLOAT, ["batch", 2, "height", "width"]),
    )  # fmt: skip


def build_card(
    name: str, *, halo_px: int = 0, stride_multiple: int = 1, classes: tuple = TWO_CLASSES
) -> ModelCard:
    """Describe a model that takes uint8 NHWC and gives softmax probabilities NHWC."""
    return ModelCard(
        architecture=name,
        class_names=classes[0],
        class_colors=classes[1],
        spacing_um_px=0.5,
        patch_size_pixels=(TILE, TILE),
        input=InputSpec("image", "NHWC", "uint8", "RGB", (None, None, None, 3)),
        output=OutputSpec("probabilities", "NHWC", "softmax", len(classes[0])),
        tiling=Tiling(stride_multiple, halo_px, overlap_px=2 * halo_px + 16),
        precision="fp32",
        provenance={"source_name": "tests/data/make_models.py"},
    )


def build_foreign_card() -> ModelCard:
    """Describe `nchw_float_logits.onnx`."""
    return dataclasses.replace(
        build_card("conv", halo_px=1),
        input=InputSpec("planes", "NCHW", "float32", "RGB", (1, 3, None, None)),
        output=OutputSpec("logits", "NCHW", "logits", 2),
        transform=(TransformStep(scale=1 / 255),),
    )


def build_probe_card() -> ModelCard:
    """Describe `probe.onnx`."""
    return dataclasses.replace(
        build_card("one convolution", halo_px=1, classes=(("red", "blue"), ("#ff0000", "#0000ff"))),
        input=InputSpec("planes", "NCHW", "float32", "RGB", (None, 3, None, None)),
        output=OutputSpec("logits", "NCHW", "logits", 2),
        transform=(TransformStep(scale=1 / 32),),
        intended_use="Tries an execution provider.",
    )


def _spoil(card: ModelCard) -> str:
    return json.dumps(json.loads(card_to_text(card)) | {"spacing_um_px": -1})


def build_all() -> dict[str, tuple[onnx.ModelProto, str | None]]:
    """Return each file's model and the text of its card."""
    threshold = build_card("threshold")
    return {
        "constant.onnx": (build_constant(), card_to_text(build_card("constant", classes=THREE_CLASSES))),
        "threshold.onnx": (build_threshold(), card_to_text(threshold)),
        "conv.onnx": (build_conv(), card_to_text(build_card("conv", halo_px=3))),
        "unet.onnx": (build_unet(), card_to_text(build_card("unet", halo_px=5, stride_multiple=2))),
        "nchw_float_logits.onnx": (build_nchw_float_logits(), card_to_text(build_foreign_card())),
        "no_card.onnx": (build_threshold(), None),
        "bad_card.onnx": (build_threshold(), _spoil(threshold)),
    }


def write_model(path: Path, model: onnx.ModelProto, card_text: str | None) -> None:
    """Check a model and write it, with its card inside if it has one."""
    if card_text is not None:
        helper.set_model_props(model, {METADATA_KEY: card_text})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_probe(path: Path) -> None:
    """Write `probe.onnx`."""
    write_model(path, build_probe(), card_to_text(build_probe_card()))


def main(folder: Path) -> None:
    """Write every model of the tests into `folder`."""
    for name, (model, card_text) in build_all().items():
        write_model(folder / name, model, card_text)


if __name__ == "__main__":
    main(Path(__file__).parent)
    write_probe(probe_model())
