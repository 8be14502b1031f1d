"""Read a SavedModel folder as a graph of pure operations and a table of numbers.

`tf.saved_model.load` runs parts of the graph while it loads (initialisers, restore functions), and whoever
wrote the folder chose them. Here the graph is read as data: the part that one output needs is cut out, every
operation in it, and in the functions it calls, has to be one that only computes, and its variables are read
from the checkpoint. Layers, and Python code among them, are in a file that is never opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoseg.errors import ModelError
from histoseg_export.freeze import Frozen, freeze_graph
from histoseg_export.loaders.opnames import PURE_OPS
from histoseg_export.loaders.source import LoadedModel, LoadOptions, Source
from histoseg_train.kerasfile import summarize_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_SIGNATURES = ("serving_default", "serve")
_CHECKPOINT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# operations that hand probabilities on as probabilities
_PASSIVE_OPS = frozenset(
    {
        "Cast",
        "Identity",
        "IdentityN",
        "Reshape",
        "ResizeBilinear",
        "ResizeNearestNeighbor",
        "Squeeze",
        "Transpose",
    }
)
_OP_ACTIVATIONS = dict.fromkeys(
    ("AddV2", "BiasAdd", "Conv2D", "Conv2DBackpropInput", "FusedBatchNormV3"), "linear"
)
_HANDLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})


@dataclass(frozen=True)
class _Tensor:
    """An end of a signature."""

    key: str
    name: str
    """Of the tensor in the graph, such as `serving_default_image:0`."""
    dtype: int
    shape: tuple[int | None, ...] | None


def load_saved_model(source: Source, options: LoadOptions) -> LoadedModel:
    """Load the network behind one signature of a SavedModel.

    Raises:
        ModelError: The folder is damaged, a signature or output has to be chosen, or the graph does more than
            compute; the message names the operations.
    """
    import tensorflow as tf

    meta = _read_meta_graph(source.path)
    name = _choose_signature(source.path, meta, options.signature)
    image, result = _choose_ends(source.path, meta.signature_def[name], options.output)
    graph = _cut_graph(meta.graph_def, result.name)
    refuse_impure(source.path, graph)
    values = _read_variables(source.path, meta, graph)
    model = _wrap(graph, values, image, result, source.path)
    return LoadedModel(model, f"TensorFlow {tf.__version__}, signature '{name}'")


def refuse_impure(path: Path, graph: Any) -> None:
    """Refuse a graph in which an operation does more than compute.

    Raises:
        ModelError: The message names the operations.
    """
    functions = {function.signature.name for function in graph.library.function}
    found = dict.fromkeys(
        node.op for node in _iter_nodes(graph) if node.op not in PURE_OPS and node.op not in functions
    )
    if found:
        raise ModelError(
            f"{path}: its graph does {', '.join(found)}, expected operations that only compute; "
            "replace the layers that do this, and save the model again"
        )


def _read_meta_graph(path: Path) -> Any:
    """Return the graph to serve."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    document = saved_model_pb2.SavedModel()
    try:
        document.ParseFromString((path / "saved_model.pb").read_bytes())
    except (DecodeError, OSError) as error:
        raise ModelError(f"{path}: its saved_model.pb is damaged ({summarize_error(error)})") from error
    graphs = sorted(document.meta_graphs, key=lambda meta: "serve" not in meta.meta_info_def.tags)
    if not graphs:
        raise ModelError(f"{path}: its saved_model.pb holds no graph; save the model again")
    return graphs[0]


def _choose_signature(path: Path, meta: Any, wanted: str | None) -> str:
    names = [name for name in meta.signature_def if not name.startswith("__saved_model")]
    if wanted is None and len(names) == 1:
        return str(names[0])
    for name in (wanted,) if wanted is not None else DEFAULT_SIGNATURES:
        if name in names:
            return str(name)
    found = ", ".join(f"'{name}'" for name in sorted(names)) or "none"
    missing = f"no signature '{wanted}'" if wanted else "no signature 'serving_default'"
    raise ModelError(f"{path}: has {missing} but {found}; choose one with --signature NAME")


def _choose_ends(path: Path, signature: Any, output: str | None) -> tuple[_Tensor, _Tensor]:
    inputs, outputs = _read_ends(signature.inputs), _read_ends(signature.outputs)
    if len(inputs) != 1:
        raise ModelError(f"{path}: has {len(inputs)} inputs ({_name(inputs)}), expected one, the image")
    if output is None and len(outputs) != 1:
        raise ModelError(
            f"{path}: has {len(outputs)} outputs ({_name(outputs)}), expected one; "
            "choose it with --output NAME"
        )
    result = next((end for end in outputs if output in (None, end.key)), None)
    if result is None:
        raise ModelError(f"{path}: has no output '{output}', expected one of {_name(outputs)}")
    image = inputs[0]
    if image.shape is None or len(image.shape) != 4 or image.shape[0] is not None:
        raise ModelError(
            f"{path}: its input '{image.key}' has shape {_words(image.shape)}, expected (any, height, width, "
            "channels): batches of images of any number; give the .h5 or .keras file it was made from"
        )
    return image, result


def _read_ends(ends: Any) -> list[_Tensor]:
    found = []
    for key, info in sorted(ends.items()):
        sizes = tuple(None if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
        found.append(_Tensor(key, info.name, info.dtype, None if info.tensor_shape.unknown_rank else sizes))
    return found


def _name(ends: list[_Tensor]) -> str:
    return ", ".join(f"'{end.key}' {_words(end.shape)}" for end in ends)


def _words(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "(unknown)"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _cut_graph(graph: Any, output: str) -> Any:
    """Return the part of a graph that an output needs, with the functions that this part calls."""
    from tensorflow.core.framework import graph_pb2

    nodes = {node.name: node for node in graph.node}
    needed: dict[str, Any] = {}
    waiting = [output.split(":", maxsplit=1)[0]]
    while waiting:
        name = waiting.pop()
        if name in needed or name not in nodes:
            continue
        needed[name] = nodes[name]
        waiting += [value.lstrip("^").split(":")[0] for value in nodes[name].input]
    part = graph_pb2.GraphDef(versions=graph.versions)
    part.node.extend(needed.values())
    part.library.function.extend(_reach_functions(part.node, graph.library))
    for node in _iter_nodes(part):
        node.device = ""  # that of the machine which saved it
        node.attr.pop("_XlaMustCompile", None)  # a hint for speed, which hides the function from conversion
    for function in part.library.function:
        function.attr.pop("_XlaMustCompile", None)
    return part


def _reach_functions(nodes: Iterable[Any], library: Any) -> list[Any]:
    functions = {function.signature.name: function for function in library.function}
    reached: dict[str, Any] = {}
    waiting = [name for node in nodes for name in _called(node)]
    while waiting:
        name = waiting.pop()
        if name in functions and name not in reached:
            reached[name] = functions[name]
            waiting += [called for node in functions[name].node_def for called in _called(node)]
    return list(reached.values())


def _called(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _iter_nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _read_variables(path: Path, meta: Any, graph: Any) -> dict[str, NDArray[Any]]:
    """Return the values of a graph's variables by the names of their nodes."""
    import tensorflow as tf

    handles = [node for node in graph.node if node.op in _HANDLES]
    if not handles:
        return {}
    if not (path / "variables" / "variables.index").is_file():
        raise ModelError(
            f"{path}: holds no variables/variables.index, expected the whole folder; copy it again"
        )
    try:
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        keys = _find_keys(meta, graph, reader)
        found = {node.name: keys.get(node.name, _shared_name(node)) for node in handles}
        missing = [name for name, key in found.items() if not reader.has_tensor(key)]
        if missing:
            raise ModelError(
                f"{path}: its checkpoint holds no value for {', '.join(missing[:4])}, expected all variables"
            )
        return {name: reader.get_tensor(key) for name, key in found.items()}
    except ModelError:
        raise
    except Exception as error:  # the reader raises what it likes about damaged files
        raise ModelError(
            f"{path}: its variables cannot be read ({summarize_error(error)}); save the model again"
        ) from error


def _shared_name(node: Any) -> str:
    """Return the name under which TensorFlow 1 stored a variable."""
    return node.attr["shared_name"].s.decode() or str(node.name)


def _find_keys(meta: Any, graph: Any, reader: Any) -> dict[str, str]:
    """Return the checkpoint's key of each variable's node.

    A TensorFlow 2 function lists the objects that it captured in the order of its last arguments; the
    checkpoint names objects by their path, which both object graphs share.
    """
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    if not meta.HasField("object_graph_def") or not reader.has_tensor(_CHECKPOINT_GRAPH):
        return {}
    stored = trackable_object_graph_pb2.TrackableObjectGraph()
    stored.ParseFromString(reader.get_tensor(_CHECKPOINT_GRAPH))
    pairs = _pair_objects(meta.object_graph_def.nodes, stored.nodes)
    functions, keys = meta.object_graph_def.concrete_functions, {}
    for node in graph.node:
        inputs = [value.split(":")[0] for value in node.input if not value.startswith("^")]
        for name in _called(node):
            bound = list(functions[name].bound_inputs) if name in functions else []
            for value, index in zip(inputs[len(inputs) - len(bound) :], bound, strict=True):
                attributes = stored.nodes[pairs[index]].attributes if index in pairs else []
                if attributes:
                    keys[value] = attributes[0].checkpoint_key
    return keys


def _pair_objects(saved: Any, stored: Any) -> dict[int, int]:
    """Walk two object graphs together from their roots; return which node is which."""
    pairs, waiting = {0: 0}, [0]
    while waiting:
        index = waiting.pop()
        children = {child.local_name: child.node_id for child in stored[pairs[index]].children}
        for child in saved[index].children:
            if child.local_name in children and child.node_id not in pairs:
                pairs[child.node_id] = children[child.local_name]
                waiting.append(child.node_id)
    return pairs


def _find_activation(graph: Any, tensor: str) -> str:
    """Return what the last operation that changes values is, in the words of a Keras layer's activation."""
    functions = {function.signature.name: function for function in graph.library.function}
    nodes = {node.name: node for node in graph.node}
    while True:
        name, _, index = tensor.partition(":")
        node = nodes.get(name)
        if node is None:
            return ""
        called = next((functions[name] for name in _called(node) if name in functions), None)
        if called is not None:
            nodes = {item.name: item for item in called.node_def}
            results = [called.ret[end.name] for end in called.signature.output_arg]
            tensor = results[int(index.rpartition(":")[2] or 0)]
        elif node.op in _PASSIVE_OPS:
            tensor = node.input[int(index.rpartition(":")[2] or 0) if node.op == "IdentityN" else 0]
        else:
            return str(_OP_ACTIVATIONS.get(node.op, node.op.lower()))


def _wrap(graph: Any, values: dict[str, NDArray[Any]], image: _Tensor, result: _Tensor, path: Path) -> Any:
    """Return a `keras.Model` of one layer that runs a graph."""
    import keras
    import tensorflow as tf

    activation = _find_activation(graph, result.name)
    assert image.shape is not None
    try:
        frozen = _freeze(graph, values, image, result)
        layer = _build_layer(frozen, image.dtype, activation)
        pixels = keras.Input(image.shape[1:], name="image", dtype=tf.as_dtype(image.dtype).name)
        return keras.Model(pixels, layer(pixels), name="saved_model")
    except Exception as error:  # what TensorFlow raises for a graph that does not fit together
        raise ModelError(f"{path}: its graph cannot be run ({summarize_error(error)})") from error


def _build_layer(frozen: Frozen, dtype: int, activation: str) -> Any:
    import keras
    import tensorflow as tf

    def run(pixels: Any) -> Any:
        ends = {frozen.image: tf.cast(pixels, dtype)}
        return tf.graph_util.import_graph_def(
            frozen.graph, input_map=ends, return_elements=[frozen.result], name=""
        )[0]

    traced = tf.function(run, autograph=False)

    class GraphLayer(keras.layers.Layer):  # type: ignore[misc]
        """A graph with its weights; it is used as it is, never copied."""

        histoseg_reuse = True
        histoseg_activation = activation

        def call(self, inputs: Any) -> Any:
            """Run the graph."""
            return traced(inputs)

    return GraphLayer(name="graph", dtype="float32")


def _freeze(graph: Any, values: dict[str, NDArray[Any]], image: _Tensor, result: _Tensor) -> Frozen:
    """Return a graph with constants for variables, its functions written out."""
    import tensorflow as tf

    handles = {node.name for node in graph.node if node.op == "VarHandleOp"}
    variables = {name: tf.Variable(values[name], trainable=False) for name in handles}
    kept = [_make_constant(node, values) for node in graph.node if node.name not in handles]
    del graph.node[:]
    graph.node.extend(kept)

    def run(pixels: Any) -> Any:
        inner = tf.compat.v1.get_default_graph()
        ends = {image.name: pixels}
        for name, variable in variables.items():
            inner.watch_variable(variable)
            ends[f"{name}:0"] = inner.capture(variable.handle)
        return tf.graph_util.import_graph_def(graph, input_map=ends, return_elements=[result.name], name="")[
            0
        ]

    return freeze_graph(run, tf.TensorSpec(image.shape, image.dtype))


def _make_constant(node: Any, values: dict[str, NDArray[Any]]) -> Any:
    """Return a constant in place of a variable of TensorFlow 1; other nodes as they are."""
    import tensorflow as tf
    from tensorflow.core.framework import node_def_pb2

    if node.name not in values:
        return node
    constant = node_def_pb2.NodeDef(name=node.name, op="Const")
    constant.attr["dtype"].type = tf.as_dtype(values[node.name].dtype).as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values[node.name]))
    return constant
