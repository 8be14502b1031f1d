"""Put a file of weights into a network that this project, or the caller's own function, builds.

The file must fit the network to the last number: every array of the file has to be found in the network
afterwards, and every variable of the network in the file. A part of a network behaves like no network.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import ModelError, OptionError
from histoseg_export.anykeras import keras_of
from histoseg_export.loaders.source import LoadedModel, LoadOptions, Source, extract_weights
from histoseg_export.loaders.userfile import read_builder
from histoseg_train.architectures.registry import (
    ARCHITECTURES,
    Shape,
    build_architecture,
    parse_architecture,
)
from histoseg_train.kerasfile import summarize_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

# what is stored beside the weights
_OTHER_GROUPS = frozenset({"metrics", "optimizer", "optimizer_weights", "seed_generator"})
_ROLES = frozenset(
    {"alpha", "beta", "bias", "depthwise_kernel", "gamma", "kernel", "moving_mean", "moving_variance"}
    | {"pointwise_kernel"}
)
_LISTED = 4


@dataclass(frozen=True)
class Weight:
    """One array, in a file or in a network."""

    name: str
    shape: tuple[int, ...]
    digest: bytes
    """Of its content as float32."""

    @property
    def role(self) -> str | None:
        """Return what it is to its layer, such as `kernel`; `None` where its name does not say."""
        word = re.sub(r"(_\d+)?(:0)?$", "", re.split(r"[/.]", self.name)[-1])
        return word if word in _ROLES else None


def load_weights(source: Source, options: LoadOptions) -> LoadedModel:
    """Build the network that the caller names, and fill it.

    Raises:
        ModelError: The file is damaged, or fits the network in part only; the message lists what is left.
        OptionError: The architecture or the builder is missing or wrong.
    """
    if source.kind == "savedmodel" or not (options.builder or options.architecture):
        raise ModelError(
            f"{source.path}: holds weights only, without the network; build it with "
            f"--builder FILE.py:FUNCTION, or name it with --arch (one of {', '.join(sorted(ARCHITECTURES))})"
        )
    if options.builder and options.architecture:
        raise OptionError("--builder and --arch are both given, expected one of them")
    with tempfile.TemporaryDirectory() as folder:
        path = _copy_weights(source, Path(folder))
        stored = read_weights(source.path, path)
        if options.builder:
            model = _build(options.builder, _guess_shape(stored, options))
        else:
            assert options.architecture is not None
            model = _build_fitting(source.path, options.architecture, stored)
        _fill(source.path, model, path, stored)
    module = keras_of(model)
    words = f"{options.builder or options.architecture}, filled by {module.__name__} {module.__version__}"
    return LoadedModel(
        model, words, (f"all {len(stored)} arrays of the file are in the network, and no others",)
    )


def read_weights(path: Path, weights: Path) -> list[Weight]:
    """Return the arrays of an HDF5 file of weights.

    Raises:
        ModelError: There are none, or the file is damaged.
    """
    import h5py

    found: list[Weight] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not _OTHER_GROUPS.intersection(name.split("/")):
            found.append(_describe(name, item[()]))

    try:
        with h5py.File(weights, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path}: is damaged or truncated ({summarize_error(error)})") from error
    if not found:
        raise ModelError(f"{path}: holds no weights; save it again")
    return found


def compare_shapes(stored: list[Weight], network: list[Weight]) -> str | None:
    """Say which arrays have no counterpart of their shape; `None` when all have."""
    return _compare(stored, network, lambda weight: weight.shape)


def compare_weights(stored: list[Weight], network: list[Weight]) -> str | None:
    """Say what of a file is not in a network, or of a network not in the file; `None` when nothing is.

    Args:
        stored: The file's arrays.
        network: Those of the filled network.
    """
    rest = _compare(stored, network, lambda weight: weight.digest)
    if rest is not None:
        return rest
    roles: dict[bytes, set[str | None]] = {}
    for weight in network:
        roles.setdefault(weight.digest, set()).add(weight.role)
    for weight in stored:
        taken = roles[weight.digest]
        if weight.role and None not in taken and weight.role not in taken:
            return f"'{weight.name}' of the file becomes a {'/'.join(sorted(map(str, taken)))} of the network"
    return None


def read_network(model: Any) -> list[Weight]:
    """Return the arrays of a network."""
    return [_describe(str(getattr(v, "path", v.name)), np.asarray(v)) for v in model.weights]


def _compare(stored: list[Weight], network: list[Weight], key: Callable[[Weight], Any]) -> str | None:
    unused, unfilled = _subtract(stored, network, key), _subtract(network, stored, key)
    if not (unused or unfilled):
        return None
    return (
        f"of {len(stored)} arrays in the file {len(unused)} are not used ({_list(unused)}), and "
        f"of {len(network)} in the network {len(unfilled)} not filled ({_list(unfilled)})"
    )


def _copy_weights(source: Source, folder: Path) -> Path:
    """Return a copy whose suffix tells Keras which of its two layouts the file has."""
    import h5py

    if source.kind == "keras":
        return extract_weights(source.path, folder / "model.weights.h5")
    with h5py.File(source.path, "r") as file:
        by_layer = "layer_names" in file.attrs or "layer_names0" in file.attrs or "model_weights" in file
    path = folder / ("model.h5" if by_layer else "model.weights.h5")
    shutil.copyfile(source.path, path)
    return path


def _guess_shape(stored: list[Weight], options: LoadOptions) -> Shape:
    """Return the input's height, width and channels: what a kernel of the file takes."""
    width, height = options.input_size or (None, None)
    return height, width, _guess_channels(stored)


def _guess_channels(stored: list[Weight]) -> int:
    """Return 3, or 1 where some kernel takes one channel and none takes three."""
    taken = {weight.shape[2] for weight in stored if len(weight.shape) == 4}
    return 1 if 1 in taken and 3 not in taken else 3


def _build(words: str, shape: Shape) -> Any:
    build = read_builder(words)
    try:
        model = build(shape) if _takes_argument(build) else build()
    except Exception as error:  # whatever the caller's own code raises
        raise OptionError(
            f"{words}: cannot build the network ({type(error).__name__}: {summarize_error(error)})"
        ) from error
    if not hasattr(model, "load_weights") or not getattr(model, "inputs", None):
        raise OptionError(
            f"{words}: gave {type(model).__name__}, expected a keras.Model with known inputs and outputs"
        )
    return model


def _takes_argument(build: Callable[..., Any]) -> bool:
    """Tell whether a function asks for the input's shape."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(build).parameters.values()
    return any(p.kind in kinds and (p.default is p.empty or p.name == "input_shape") for p in parameters)


def _build_fitting(path: Path, name: str, stored: list[Weight]) -> Any:
    """Build an architecture with the number of classes whose weights have the file's shapes."""
    wanted = Counter(weight.shape for weight in stored)
    channels = _guess_channels(stored)
    counts = sorted(
        {weight.shape[0] for weight in stored if len(weight.shape) == 1 and weight.shape[0] < 256}
    )
    options = parse_architecture(name)
    for classes in counts:
        model = build_architecture((None, None, channels), classes, options=options)
        if Counter(tuple(variable.shape) for variable in model.weights) == wanted:
            return model
    raise ModelError(
        f"{path}: its {len(stored)} arrays do not have the shapes of {name} with any number of classes, "
        "expected the very network they were trained in; say its numbers with --arch, as in unet-w16-d4"
    )


def _fill(path: Path, model: Any, weights: Path, stored: list[Weight]) -> None:
    """Load by name where the names are the same, else by position; each in turn until nothing is left over.

    Raises:
        ModelError: Something is left over either way; the message lists it.
    """
    problem = compare_shapes(stored, read_network(model))
    for by_name in () if problem else _choose_ways(model, weights):
        problem = _try_loading(model, weights, by_name=by_name)
        problem = problem or compare_weights(stored, read_network(model))
        if problem is None:
            return
    raise ModelError(f"{path}: does not fit the network: {problem}; build the very network it was trained in")


def _choose_ways(model: Any, weights: Path) -> tuple[bool, ...]:
    """Return whether to load by name, first choice first; numbered variables have no names."""
    if weights.name != "model.h5":
        return (False,)
    own = {layer.name for layer in model.layers if layer.weights}
    return (True, False) if _read_layer_names(weights) == own else (False, True)


def _try_loading(model: Any, weights: Path, *, by_name: bool) -> str | None:
    """Load, and return what Keras says against it."""
    try:
        model.load_weights(weights, **({"by_name": True} if by_name else {}))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
        return summarize_error(error)
    return None


def _read_layer_names(weights: Path) -> set[str]:
    """Return the names of the layers that have weights in a file that keeps them by layer."""
    import h5py

    with h5py.File(weights, "r") as file:
        group = file.get("model_weights", file)
        return {name for name in group if isinstance(group[name], h5py.Group) and len(group[name])}


def _describe(name: str, values: NDArray[Any]) -> Weight:
    array = np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else values.dtype)
    return Weight(name, tuple(array.shape), hashlib.sha256(array.tobytes()).digest())


def _subtract(these: list[Weight], those: list[Weight], key: Callable[[Weight], Any]) -> list[Weight]:
    """Return what of `these` has no like among `those`."""
    left = Counter(key(weight) for weight in those)
    rest = []
    for weight in these:
        left[key(weight)] -= 1
        if left[key(weight)] < 0:
            rest.append(weight)
    return rest


def _list(weights: list[Weight]) -> str:
    largest = sorted(weights, key=lambda weight: -math.prod(weight.shape))[:_LISTED]
    words = [f"{weight.name} {weight.shape}" for weight in largest]
    return ", ".join(words + ["..."] * (len(weights) > _LISTED)) or "none"
