"""What a killed run leaves, so that the same command goes on where it stopped.

After every epoch all that the next one depends on is written into one file. Patches depend on the seed, the
epoch and their number alone, so that chance needs no place in it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from histoseg import __version__
from histoseg.atomic import write_whole
from histoseg.errors import OutputError
from histoseg.jsonclass import to_json
from histoseg_train.dataset import Item
from histoseg_train.history import Epoch
from histoseg_train.job import Job

Array = NDArray[Any]


@dataclass(frozen=True)
class RunState:
    """A run between two epochs."""

    epochs: tuple[Epoch, ...]
    """Those that are done, one at least."""
    variables: tuple[Array, ...]
    """Of `Network.variables`, in their order."""
    best_weights: tuple[Array, ...]
    """Of the best epoch's model."""


def describe_run(job: Job) -> dict[str, Any]:
    """Return all that decides what a run gives, by name; two runs that agree in it give the same.

    Files count by their content, so that a copied, renamed or touched one is no other.
    """
    said: dict[str, Any] = {
        "arch": job.network.name,
        "weights": job.weights,
        "smooth_um": job.smooth_um,
        "target": asdict(job.target),
        "patches": asdict(job.patches),
        "loss": asdict(job.loss),
        "fit": asdict(job.fit),
    }
    if job.teachers.teachers:
        digests = [teacher.sha256 for teacher in job.teachers.teachers]
        said |= {"teachers": digests, "teacher_share": job.teachers.share}
    versions = {"histoseg": __version__, "keras": keras.__version__, "backend": keras.backend.backend()}
    return to_json({**said, **versions, "data": _digest_items(job.dataset.items)})


def write_state(path: Path, state: RunState, run: dict[str, Any]) -> None:
    """Write a state with what `describe_run` returned; the file is replaced as a whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    head = json.dumps({"run": run, "epochs": [asdict(epoch) for epoch in state.epochs]})
    named: dict[str, Any] = _name("variable", state.variables) | _name("best", state.best_weights)
    try:
        with write_whole(path) as part, part.open("wb") as file:
            np.savez(file, head=np.array(head), **named)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the state of the run: {error}") from error


def find_state(path: Path, run: dict[str, Any], *, tell: Callable[[str], None]) -> RunState | None:
    """Return the state that the run was left in, or `None` where it has to begin afresh.

    Args:
        path: Where `write_state` may have written.
        run: What `describe_run` returned.
        tell: Called with one line that says what was found, if anything was.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].item())
            state = RunState(
                epochs=tuple(Epoch(**entry) for entry in head["epochs"]),
                variables=tuple(_iter_named(file, "variable")),
                best_weights=tuple(_iter_named(file, "best")),
            )
        changed = sorted(_compare(head["run"], run))
        done = state.epochs[-1].number
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        tell(f"{path}: damaged ({type(error).__name__}); training starts afresh")
        return None
    if changed:
        tell(f"{path}: of a run with other {', '.join(changed)}; training starts afresh")
        return None
    tell(f"{path}: training goes on after epoch {done}; --restart starts afresh")
    return state


def read_variables(variables: Iterable[Any]) -> tuple[Array, ...]:
    """Return the values of Keras variables."""
    return tuple(np.array(keras.ops.convert_to_numpy(variable)) for variable in variables)


def assign_variables(variables: Sequence[Any], values: Sequence[Array]) -> None:
    """Give Keras variables the values that `read_variables` returned for the same network."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _name(kind: str, arrays: Sequence[Array]) -> dict[str, Array]:
    return {f"{kind}_{index}": array for index, array in enumerate(arrays)}


def _iter_named(file: Any, kind: str) -> Iterable[Array]:
    count = sum(name.startswith(f"{kind}_") for name in file.files)
    return (file[f"{kind}_{index}"] for index in range(count))


def _compare(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the names whose values differ, those of nested options instead of their group's."""
    names = []
    for name in old.keys() | new.keys():
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += _compare(before, after)
        elif before != after:
            names.append(name)
    return names


def _digest_items(items: Iterable[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        words = {name: value for name, value in asdict(item).items() if name not in ("image", "mask")}
        digest.update(json.dumps(to_json(words), sort_keys=True).encode())
        for path in (item.image, item.mask):
            if path is None:
                continue
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
