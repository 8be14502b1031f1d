"""Turn JSON documents into frozen dataclasses and back, naming the field that is wrong.

Understands the types a model card uses: nested dataclasses, `Literal`, `tuple[X, ...]`, `X | None`,
`int`, `float`, `str`, `bool` and free-form `dict[str, Any]`. Nothing is coerced but `int` to `float`.
"""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from histoseg.errors import CardError

T = TypeVar("T")


def from_json(cls: type[T], document: Any, where: str = "") -> T:
    """Build `cls` from a parsed JSON object.

    Args:
        cls: A frozen dataclass; fields with defaults may be absent from the document.
        document: What `json.loads` returned.
        where: Path of this object in the document, for messages (`""` at the top).

    Raises:
        CardError: A field is unknown, missing or of the wrong type; the message names it.
    """
    if not isinstance(document, dict):
        subject = f"field '{where}'" if where else "the model card"
        raise CardError(f"{subject} is {_kind(document)}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in document:
        if name not in fields:
            raise CardError(f"unknown field '{_join(where, name)}': expected one of {', '.join(fields)}")
    hints = get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in document:
            values[name] = _parse(hints[name], document[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CardError(f"field '{_join(where, name)}' is missing")
    return cls(**values)


def to_json(value: Any) -> Any:
    """Return the JSON-ready form of a dataclass: dicts, lists and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        return _parse_literal(args, value, where)
    if origin in (Union, types.UnionType):
        return None if value is None else _parse(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        return _parse_tuple(args, value, where)
    if origin is dict:
        return _parse_plain(dict, value, where)
    return _parse_plain(hint, value, where)


def _parse_literal(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in allowed:
        raise CardError(f"field '{where}' is {value!r}, expected one of {', '.join(map(str, allowed))}")
    return value


def _parse_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise CardError(f"field '{where}' is {_kind(value)}, expected a list")
    if args[-1] is Ellipsis:
        return tuple(_parse(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise CardError(f"field '{where}' has {len(value)} items, expected {len(args)}")
    return tuple(
        _parse(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _parse_plain(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 53 else math.inf
    # bool is an int in Python, but a card that says `true` pixels is wrong
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise CardError(f"field '{where}' is {_kind(value)}, expected {_word(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise CardError(f"field '{where}' is {value}, expected a finite number")
    return value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _word(hint: type) -> str:
    words = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    return words.get(hint, "an object")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else repr(value)
