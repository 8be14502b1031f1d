"""Run one function in a fresh process: nothing that this process did to a model can help it there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from histoseg import errors
from histoseg.errors import HistosegError

T = TypeVar("T")
_WORDS = 160


def run_fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module's function in a new Python process and return its result.

    Args:
        function: A public function at the top of a module.
        arguments: Plain values and dataclasses.

    Raises:
        HistosegError: What the function raised, of the same class; or the process ended without an answer.
    """
    with tempfile.TemporaryDirectory() as name:
        request, answer = Path(name) / "request", Path(name) / "answer"
        request.write_bytes(pickle.dumps((function.__module__, function.__name__, arguments)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "histoseg_export.fresh", str(request), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)  # noqa: S603
        if not answer.is_file():
            raise HistosegError(
                _explain_end(function.__name__, done.returncode, done.stderr.decode(errors="replace"))
            )
        kind, value = pickle.loads(answer.read_bytes())  # noqa: S301  written by the line below
    if kind:
        raise getattr(errors, kind)(value)
    result: T = value
    return result


def answer_request(request: Path, answer: Path) -> None:
    """Do what another process asked for, and leave the result, or the error, for it."""
    from histoseg_export.quiet import prepare_environment

    prepare_environment()
    module, name, arguments = pickle.loads(request.read_bytes())  # noqa: S301  written by `run_fresh`
    try:
        result = ("", getattr(import_module(module), name)(*arguments))
    except HistosegError as error:
        result = (_public_kind(error), str(error))
    part = answer.with_suffix(".part")
    part.write_bytes(pickle.dumps(result))
    part.replace(answer)


def _explain_end(name: str, code: int, said: str) -> str:
    """Say how a process ended that left no answer."""
    if code < 0:
        return (
            f"the process for {name} was ended by signal {-code}, expected a result; "
            "memory may have run out: use smaller tiles, or a machine with more"
        )
    lines = said.strip().splitlines() or ["it said nothing"]
    return (
        f"the process for {name} failed ({lines[-1][:_WORDS]}), expected a result; please report this model"
    )


def _public_kind(error: HistosegError) -> str:
    """Return the name of the error's nearest class in `histoseg.errors`."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


if __name__ == "__main__":
    answer_request(Path(sys.argv[1]), Path(sys.argv[2]))
