"""Look into a Keras file as data, and refuse what would run code, before Keras sees it.

A `.keras` archive and an HDF5 file both hold a JSON configuration that names the classes to build. Keras's
own safe mode has let functions and Lambda bytecode through in several releases, so nothing is left to it:
only Keras's own layers, operations, initializers, regularizers, constraints and policies pass.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoseg.errors import ModelError
from histoseg_train.filekind import FileKind, detect_kind

# layers whose content is a program or another file
CODE_LAYERS = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__"})
# layers that read another file that their configuration names
_FILE_LAYERS = frozenset({"IndexLookup", "IntegerLookup", "StringLookup", "TextVectorization"})
_MODULE_ROOTS = ("histoseg_train", "keras", "tensorflow.python.keras", "tf_keras")
# where Keras 3 keeps what a configuration may name; older files name modules that are gone
_NAMESPACES = ("layers", "models", "initializers", "regularizers", "constraints", "dtype_policies")
_MODELS = frozenset({"Functional", "Model", "Sequential"})
# the package that this project's own layers are registered under
_OWN_PREFIX = "histoseg>"
# values, not objects; of older files, which name no module
_VALUES = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__"}
    | {"TensorShape"}
)
# how Keras words what a layer raised when it was called
_CALL = re.compile(
    r"Exception encountered when calling (.+?)\.\n\n(.+?)\n\n(?:Call a|A)rguments .*", re.DOTALL
)
ACTIVATION_KEYS = ("activation", "recurrent_activation")


@dataclass(frozen=True)
class Vocabulary:
    """What a generation of Keras builds by name, out of plain values."""

    has_class: Callable[[str | None, str], bool]
    """Told a module, `None` where the file names none, and a class."""
    has_activation: Callable[[str], bool]


def check_file(path: Path) -> FileKind:
    """Refuse a file that is no whole Keras model, or would run code when it is loaded.

    Returns:
        Which kind of file it is.

    Raises:
        ModelError: The message names the reason.
    """
    kind = detect_kind(path)
    refuse_code(path, read_keras_config(path) if kind == "keras" else read_h5_config(path))
    return kind


def read_keras_config(path: Path) -> dict[str, Any]:
    """Return the configuration inside a `.keras` archive.

    Raises:
        ModelError: The archive is damaged, holds weights only, or is no Keras model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return parse_config(path, archive.read("config.json"))
    except KeyError:
        raise ModelError(f"{path}: holds no config.json; expected a whole model that Keras saved") from None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ModelError(f"{path}: is a damaged or truncated .keras archive ({error})") from error


def read_h5_config(path: Path) -> dict[str, Any]:
    """Return the configuration inside a whole-model HDF5 file.

    Raises:
        ModelError: The file is truncated, or holds weights only.
    """
    text, _ = read_h5_text(path)
    if text is None:
        raise ModelError(
            f"{path}: holds weights only, without the network; expected a whole model: "
            "build the network, load these weights, and save it with model.save('model.keras')"
        )
    return parse_config(path, text)


def read_h5_text(path: Path) -> tuple[str | None, str]:
    """Return what an HDF5 file says of itself.

    Returns:
        The JSON text of its network, `None` where it holds weights only; and the version of Keras that saved
        it, or nothing.

    Raises:
        ModelError: The file is truncated, refers to other files, or holds no Keras weights.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            refuse_links(path, file)
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            if text is None and not _holds_weights(file):
                members = ", ".join(list(file)[:4]) or "nothing"
                raise ModelError(f"{path}: is an HDF5 file without a Keras model (it holds {members})")
            return _decode(text), _decode(version) or ""
    except (OSError, RuntimeError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path}: is a damaged or truncated HDF5 file of {size} bytes ({summarize_error(error)}); "
            "fetch or save it again"
        ) from error


def refuse_code(
    path: Path,
    config: dict[str, Any],
    *,
    vocabulary: Vocabulary | None = None,
    code_remedy: str = "replace each by Keras layers or keras.ops and save the model again",
    class_remedy: str = "expected Keras layers only",
) -> None:
    """Refuse a configuration that holds Python code, or names classes that are not Keras's own.

    Keras's own safe mode does not cover HDF5 files, so nothing is left to it.

    Args:
        path: The file, for the message.
        config: Its configuration.
        vocabulary: What may be named; Keras 3's when `None`.
        code_remedy: What to do about Python code.
        class_remedy: What to do about foreign classes.

    Raises:
        ModelError: The message names the layers.
    """
    code = find_code(config)
    if code:
        words = ", ".join(f"{layer!r} ({kind})" for layer, kind in code)
        raise ModelError(
            f"{path}: {'layer' if len(code) == 1 else 'layers'} {words} would run Python code from "
            f"the file, which is never executed; {code_remedy}"
        )
    foreign = list(dict.fromkeys(_iter_foreign(config, vocabulary or KERAS_3)))
    if foreign:
        raise ModelError(f"{path}: needs {', '.join(foreign)}, not part of Keras; {class_remedy}")


def refuse_links(path: Path, file: Any) -> None:
    """Refuse what would read another file: external links, external storage, virtual datasets.

    Args:
        path: The file, for the message.
        file: The open `h5py.File`.

    Raises:
        ModelError: The message names the member.
    """
    import h5py

    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for name in group:
            outside = isinstance(group.get(name, getlink=True), h5py.ExternalLink)
            member = None if outside else group.get(name)
            if isinstance(member, h5py.Dataset):
                outside = bool(member.external) or member.is_virtual
            if outside:
                raise ModelError(
                    f"{path}: takes '{name}' from another file, expected all weights in this one"
                )
            if isinstance(member, h5py.Group):
                address = h5py.h5o.get_info(member.id).addr  # links may form a ring
                groups += [] if address in seen else [member]
                seen.add(address)


def find_code(config: Any) -> list[tuple[str, str]]:
    """Return the names and kinds of the layers that hold Python code, wherever they are nested."""
    return list(dict.fromkeys(_iter_code(config)))


def parse_config(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return a configuration without what only training reads.

    Raises:
        ModelError: It is not JSON, or not a model's.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its configuration is not JSON ({error}); the file is damaged") from error
    if not isinstance(config, dict) or not {"class_name", "layers"} & set(config):
        raise ModelError(f"{path}: its configuration is not a Keras model's")
    # a training configuration may name losses that are not Keras's; compile=False never reads it
    return {key: value for key, value in config.items() if key != "compile_config"}


def summarize_error(error: BaseException) -> str:
    """Return what a message says at its core, on one line of at most 160 characters."""
    text = str(error).strip()
    # TensorFlow quotes the code around the reason, Keras the whole configuration
    inner = (
        re.findall(r"^\s*(\w+(?:Error|Exception): .+)$", text, re.MULTILINE)
        if "in user code:" in text
        else []
    )
    text = inner[-1] if inner else text.rpartition("Exception encountered:")[2] or text
    text = _CALL.sub(r"\1: \2", re.sub(r"\x1b\[[\d;]*m", "", text))
    words = " ".join(text.split()) or type(error).__name__
    return words if len(words) <= 160 else words[:157] + "..."


def layer_name(config: dict[str, Any]) -> str | None:
    """Return the name in a layer's configuration."""
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _decode(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _holds_weights(file: Any) -> bool:
    """Tell weights that Keras saved: by layer since Keras 1, as numbered variables since Keras 2.12."""
    names = ("layer_names", "layer_names0", "weight_names")  # in pieces where there are too many
    found: list[str] = []
    file.visit(lambda name: found.append(name) if name.endswith("vars/0") else None)
    return bool(found) or any(name in file.attrs for name in names)


def _iter_code(config: Any, layer: str = "?") -> Iterator[tuple[str, str]]:
    if isinstance(config, dict):
        layer = layer_name(config) or layer
        name = config.get("class_name")
        if isinstance(name, str) and name in CODE_LAYERS:
            yield layer, name.strip("_")
            return
        if any(holds_code(config.get(key)) for key in ACTIVATION_KEYS):
            yield layer, "lambda"
            return
        for value in config.values():
            yield from _iter_code(value, layer)
    elif isinstance(config, list):
        for value in config:
            yield from _iter_code(value, layer)


def holds_code(activation: Any) -> bool:
    """Tell whether an activation is bytecode: a list, or such a list as a value, as Keras 2 wrote lambdas."""
    value = activation.get("value") if isinstance(activation, dict) else activation
    named = isinstance(activation, dict) and "class_name" in activation
    return activation["class_name"] in CODE_LAYERS if named else isinstance(value, list)


def _iter_foreign(config: Any, vocabulary: Vocabulary) -> Iterator[str]:
    if isinstance(config, list):
        for value in config:
            yield from _iter_foreign(value, vocabulary)
    elif isinstance(config, dict):
        if "class_name" in config and (found := _name_foreign(config, vocabulary)):
            yield found
        names = [config[key] for key in ACTIVATION_KEYS if isinstance(config.get(key), str)]
        yield from (f"function '{name}'" for name in names if not vocabulary.has_activation(name))
        for value in config.values():
            yield from _iter_foreign(value, vocabulary)


def _name_foreign(config: dict[str, Any], vocabulary: Vocabulary) -> str | None:
    """Return what a serialised object needs and the vocabulary lacks; `None` when all is known."""
    module, name = config.get("module"), config["class_name"]
    if name == "function" and module in (None, "builtins"):
        function = config.get("config")
        known = isinstance(function, str) and vocabulary.has_activation(function)
        return None if known else f"function '{function}'"
    if module is None and name in _VALUES:
        return None
    if isinstance(name, str) and isinstance(module, str | None) and vocabulary.has_class(module, name):
        return None
    return f"{module}.{name}" if module else f"class {name}"


def _has_class(module: str | None, name: str) -> bool:
    """Tell whether a configuration names a class that Keras 3 builds from plain values."""
    if module is not None and not any(module == r or module.startswith(f"{r}.") for r in _MODULE_ROOTS):
        return False
    if name in _MODELS:
        return True
    if name in _FILE_LAYERS:
        return False
    if name.startswith(_OWN_PREFIX) or (module or "").startswith("histoseg_train."):
        return _is_own_class(name.removeprefix(_OWN_PREFIX))
    import keras

    places = [getattr(keras, space, None) for space in _NAMESPACES]
    if module and module.startswith("keras"):
        with suppress(ImportError):  # a module of an older Keras: its class has to be among today's
            places.append(importlib.import_module(module))
    return any(_is_plain_class(getattr(place, name, None)) for place in places)


def _is_own_class(name: str) -> bool:
    """Tell whether a layer is one of this project's, which its module registers with Keras."""
    import keras

    importlib.import_module("histoseg_train.architectures.pooling")
    return _is_plain_class(keras.saving.get_registered_object(f"{_OWN_PREFIX}{name}"))


def _is_plain_class(found: Any) -> bool:
    import keras

    policies = (keras.dtype_policies.DTypePolicy, keras.dtype_policies.DTypePolicyMap)
    kinds = (keras.Operation, keras.Initializer, keras.regularizers.Regularizer, keras.constraints.Constraint)
    return inspect.isclass(found) and issubclass(found, kinds + policies)


def _has_activation(name: str) -> bool:
    import keras

    try:
        return callable(keras.activations.get(name))
    except ValueError:
        return False


KERAS_3 = Vocabulary(_has_class, _has_activation)
