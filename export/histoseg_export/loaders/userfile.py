"""Run a Python file that the caller names: the one place where code that Keras did not bring is executed."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from histoseg.errors import OptionError
from histoseg_train.kerasfile import summarize_error


def read_names(path: Path) -> dict[str, Any]:
    """Run a Python file and return its public functions and classes by name.

    Raises:
        OptionError: The file is missing, or an exception left it.
    """
    members = vars(_run(path))
    return {name: value for name, value in members.items() if callable(value) and not name.startswith("_")}


def read_builder(words: str) -> Callable[..., Any]:
    """Return the function that `FILE.py:FUNCTION` names.

    Raises:
        OptionError: The words, the file or the function are not what they should be.
    """
    file, colon, name = words.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise OptionError(f"--builder is '{words}', expected FILE.py:FUNCTION")
    names = read_names(Path(file))
    if name not in names:
        raise OptionError(f"{file}: has no function '{name}' (it has {', '.join(names) or 'none'})")
    function: Callable[..., Any] = names[name]
    return function


def to_identifier(name: str) -> str:
    """Return the Python name that stands for a layer's: `lambda_` for `lambda`, `step_1` for `step-1`."""
    word = re.sub(r"\W", "_", name)
    return f"{word}_" if keyword.iskeyword(word) else word


def _run(path: Path) -> Any:
    if path.suffix != ".py" or not path.is_file():
        raise OptionError(f"{path}: no such Python file, expected FILE.py")
    spec = importlib.util.spec_from_file_location(f"histoseg_user_{to_identifier(path.stem)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the caller's own code raises
        raise OptionError(
            f"{path}: cannot be run ({type(error).__name__}: {summarize_error(error)})"
        ) from error
    return module
