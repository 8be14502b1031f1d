"""Put values back where a pooling's maxima were without indices: SegNet's unpooling, for every provider.

`tf.nn.max_pool_with_argmax` and `tf.scatter_nd` become a pooling with indices, arithmetic on 64-bit integers
and a scatter, which are slow on a CPU and which CUDA and TensorRT lack in part. Where windows do not overlap,
the same values come from comparisons: a value belongs where the map equals its window's maximum, and among
equals where it ranks first.

Users write the arithmetic in many ways. It is not read: a place is found by its ends, and what lies between
is run beside what replaces it, on maps full of ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, helper

from histoseg_export.graph import NCHW_TO_NHWC, NHWC_TO_NCHW, Graph, attribute
from histoseg_export.passes.piece import Piece, Shapes, cut_piece, infer_shapes, run_piece

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCATTERS = frozenset({"MaxUnpool", "ScatterElements", "ScatterND"})
_LAYOUT = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_IMAGES = 2  # one would hide what an index says about the image
_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@dataclass(frozen=True)
class Place:
    """Where a map is unpooled."""

    pool: NodeProto
    values: str
    """What is put back, `(n, c, h, w)`, or channels last."""
    result: str
    """The unpooled map."""
    values_last: bool
    """The values keep their channels last."""
    result_last: bool
    """The result keeps its channels last."""


def lower_pool_indices(graph: Graph) -> int:
    """Replace unpooling by indices with comparisons, wherever both give the same bits."""
    changes = 0
    refused: set[tuple[str, str]] = set()
    while (place := _find_place(graph, refused)) is not None:
        _replace(graph, place)
        changes += 1
    return changes


def _find_place(graph: Graph, refused: set[tuple[str, str]]) -> Place | None:
    """Return the first place that was proven; each one found gives the next ones a known shape."""
    shapes: Shapes | None = None
    for pool in graph.nodes:
        if pool.op_type != "MaxPool" or len(pool.output) < 2 or not graph.consumers(pool.output[1]):
            continue
        shapes = shapes or infer_shapes(graph)
        if not _is_plain(pool, shapes):
            continue
        for scatter in _iter_scatters(graph, pool.output[1]):
            key = pool.name, scatter.output[0]
            values = _find_values(graph, pool, scatter, shapes)
            if key in refused or not values:
                continue
            refused.add(key)
            place = _prove(graph, pool, scatter, values, shapes)
            if place is not None:
                return place
    return None


def _is_plain(pool: NodeProto, shapes: Shapes) -> bool:
    """Tell whether windows tile the map: squares side by side, none cut off."""
    shape, size = shapes.get(pool.input[0]), list(attribute(pool, "kernel_shape"))
    if shape is None or len(shape) != 4 or None in shape[1:] or len(size) != 2 or size[0] != size[1]:
        return False
    whole = all(side is not None and side % size[0] == 0 for side in shape[2:])
    pads, dilations = attribute(pool, "pads", [0] * 4), attribute(pool, "dilations", [1, 1])
    plain = not any(pads) and list(dilations) == [1, 1] and attribute(pool, "storage_order", 0) == 0
    return whole and plain and list(attribute(pool, "strides", [1, 1])) == size


def _iter_scatters(graph: Graph, indices: str) -> Iterator[NodeProto]:
    """Yield the scatters that indices reach, looking behind none of them."""
    wave, seen = [indices], {indices}
    while wave:
        for node in graph.consumers(wave.pop()):
            if node.op_type in _SCATTERS:
                yield node
            else:
                wave += [name for name in node.output if name not in seen]
                seen.update(node.output)


def _find_values(graph: Graph, pool: NodeProto, scatter: NodeProto, shapes: Shapes) -> list[tuple[str, bool]]:
    """Return where the scattered values may come from, farthest first, and whether channels are last."""
    _, channels, height, width = shapes[pool.input[0]]
    size = attribute(pool, "kernel_shape")[0]
    assert height is not None
    assert width is not None
    wanted = channels, height // size, width // size
    name = scatter.input[0 if scatter.op_type == "MaxUnpool" else 2]
    chain = [name]
    while (maker := graph.producer(name)) is not None and maker.op_type in _LAYOUT:
        chain.append(name := maker.input[0])
    found = []
    for name in reversed(chain):
        inner = tuple(shapes.get(name, ())[1:])
        found += [(name, False)] if inner == wanted else []
        found += [(name, True)] if inner == (*wanted[1:], wanted[0]) else []
    return found


def _prove(
    graph: Graph, pool: NodeProto, scatter: NodeProto, values: list[tuple[str, bool]], shapes: Shapes
) -> Place | None:
    """Return the place whose replacement gives the same bits, with as much layout inside as can be."""
    results = list(_iter_results(graph, scatter))
    for name, last in values:
        piece = cut_piece(graph, results, {pool.input[0], name}, shapes, images=_IMAGES)
        if piece is None:
            continue
        maps = _draw_maps(shapes, pool.input[0], name)
        found = run_piece(piece, maps)
        expected = _unpool(graph, pool, maps, name, last)
        for result in reversed(results):
            for result_last in (False, True):
                wanted = expected.transpose(NCHW_TO_NHWC) if result_last else expected
                if found[result].tobytes() == wanted.tobytes() and found[result].shape == wanted.shape:
                    return Place(pool, name, result, last, result_last)
    return None


def _iter_results(graph: Graph, scatter: NodeProto) -> Iterator[str]:
    """Yield the scattered map, and what it becomes while only its layout changes and no one else sees it."""
    node: NodeProto | None = scatter
    while node is not None:
        yield str(node.output[0])
        node = graph.follower(node)
        node = node if node is not None and node.op_type in _LAYOUT else None


def _draw_maps(shapes: Shapes, source: str, values: str) -> dict[str, NDArray[Any]]:
    """Draw a map of few different values, so that most windows hold ties, and values to put back."""
    rng = np.random.default_rng(0)

    def draw(name: str, limit: int) -> NDArray[np.float32]:
        shape = (_IMAGES, *(side or 0 for side in shapes[name][1:]))
        return rng.integers(-limit, limit + 1, shape, dtype=np.int8).astype(np.float32)

    return {source: draw(source, 1), values: draw(values, 9)}


def _unpool(
    graph: Graph, pool: NodeProto, maps: dict[str, NDArray[Any]], values: str, last: bool
) -> NDArray[Any]:
    """Run the replacement on its own."""
    height, width = maps[pool.input[0]].shape[2:]
    place = Place(pool, values, "unpooled", last, result_last=False)
    alone = helper.make_node("MaxPool", [pool.input[0]], ["pooled"])  # the values may be what was pooled
    alone.attribute.extend(pool.attribute)
    nodes = [alone, *_build(graph, place, "pooled", (height, width))]
    used = {name: graph.constants[name] for node in nodes for name in node.input if name in graph.constants}
    return run_piece(Piece(nodes, used, ["unpooled"]), maps)["unpooled"]


def _build(graph: Graph, place: Place, pooled: str, size: tuple[int, int]) -> list[NodeProto]:
    """Return the nodes that unpool without indices; their constants are added to the graph."""
    pool = place.pool
    step = int(attribute(pool, "kernel_shape")[0])
    scales = graph.add_constant(np.array([1, 1, step, step], np.float32), pool.name)
    ranks = graph.add_constant(_rank_places(size, step), pool.name)
    zero = graph.add_constant(np.zeros((), np.float32), pool.name)
    nodes: list[NodeProto] = []

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{place.result}/{kind}_{len(nodes)}"
        node = helper.make_node(kind, inputs, [name], name=f"{pool.name}/{name}", **attributes)
        nodes.append(node)
        return name

    def repeat(name: str) -> str:
        return add("Resize", [name, "", scales], **_NEAREST)

    source = pool.input[0]
    is_maximum = add("Equal", [source, repeat(pooled)])
    ranked = add("Mul", [add("Cast", [is_maximum], to=1), ranks])
    highest = add("MaxPool", [ranked], kernel_shape=[step, step], strides=[step, step])
    is_first = add("Equal", [ranked, repeat(highest)])
    values = add("Transpose", [place.values], perm=NHWC_TO_NCHW) if place.values_last else place.values
    put = add("Where", [is_first, repeat(values), zero])
    if place.result_last:
        add("Transpose", [put], perm=NCHW_TO_NHWC)
    nodes[-1].output[0] = place.result
    return nodes


def _rank_places(size: tuple[int, int], step: int) -> NDArray[np.float32]:
    """Return the rank of every place in its window, `(1, 1, height, width)`: the first ranks highest."""
    rows, columns = (np.arange(side) % step for side in size)
    return (step**2 - (step * rows[:, None] + columns)).astype(np.float32)[None, None]


def _replace(graph: Graph, place: Place) -> None:
    _, _, height, width = infer_shapes(graph)[place.pool.input[0]]
    assert height is not None
    assert width is not None
    maker = graph.producer(place.result)
    assert maker is not None
    index = graph.nodes.index(maker)
    graph.nodes[index : index + 1] = _build(graph, place, place.pool.output[0], (height, width))
    graph.drop_unused()  # what made the indices into places is gone
    if not graph.consumers(place.pool.output[1]):
        del place.pool.output[1]
