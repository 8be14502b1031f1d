"""Take apart what `multi_gpu_model` of Keras 2 put around a network: slices of the batch, and their union.

The slices are Lambda layers, whose code is never looked at. They are known by their arguments, which number
of how many slices each takes, and by what follows: the same network on every slice, joined along the batch.
"""

from __future__ import annotations

from typing import Any

_SLICE_ARGUMENTS = {"i", "parts"}


def merge_replicas(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a configuration that runs its network once, on the whole batch.

    Args:
        config: Of a whole model, as Keras 2 wrote it.

    Returns:
        The configuration, as it was where nothing of `multi_gpu_model` is in it, and what was done, in words.
    """
    layers = config["config"].get("layers", []) if isinstance(config.get("config"), dict) else []
    slices = [layer for layer in layers if _is_slice(layer)]
    if not slices:
        return config, ()
    unions = [layer for layer in layers if _is_union(layer)]
    networks = _find_replicated(layers, {layer["name"] for layer in slices})
    others = [layer for layer in layers if layer.get("class_name") == "InputLayer"]
    if len(networks) != 1 or len(layers) != len(slices) + len(unions) + len(others) + 1:
        return config, ()
    sources = {layer["name"]: _first_source(layer) for layer in slices + unions}
    network = networks[0]
    once = {**network, "inbound_nodes": [_redirect(network["inbound_nodes"][0], sources)]}
    kept = [once if layer is network else layer for layer in layers if layer["name"] not in sources]
    ends = _redirect(config["config"]["output_layers"], sources)
    note = f"the copies for several GPUs were merged: the network is '{network['name']}', run once"
    return {**config, "config": {**config["config"], "layers": kept, "output_layers": ends}}, (note,)


def _is_slice(layer: dict[str, Any]) -> bool:
    inner = layer.get("config")
    arguments = inner.get("arguments") if isinstance(inner, dict) else None
    return (
        layer.get("class_name") == "Lambda"
        and isinstance(arguments, dict)
        and set(arguments) == _SLICE_ARGUMENTS
        and len(layer.get("inbound_nodes", ())) == 1
    )


def _is_union(layer: dict[str, Any]) -> bool:
    return layer.get("class_name") == "Concatenate" and layer["config"].get("axis") == 0


def _find_replicated(layers: list[dict[str, Any]], slices: set[str]) -> list[dict[str, Any]]:
    """Return the layers that are called on slices."""
    return [
        layer
        for layer in layers
        if any(end[0] in slices for node in layer.get("inbound_nodes", ()) for end in node)
    ]


def _first_source(layer: dict[str, Any]) -> list[Any]:
    """Return layer, call and tensor that a layer takes first."""
    source: list[Any] = layer["inbound_nodes"][0][0]
    return source


def _redirect(ends: list[Any], sources: dict[str, list[Any]]) -> list[Any]:
    """Return ends of connections that lead around the layers of `sources`."""
    return [[*sources[end[0]][:3], *end[3:]] if end[0] in sources else end for end in ends]
