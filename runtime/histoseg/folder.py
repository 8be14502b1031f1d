"""A folder of results that appears whole or not at all, and is written by one run at a time.

Results are written into `.<name>.part` beside the folder. While an older result gives way to a new one, it is
called `.<name>.old` for a moment.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from histoseg.errors import HistosegError, OutputError, RoiError, TruthError
from histoseg.folderlock import OutputInUseError, lock_folder
from histoseg.owner import OWNER_NAME

__all__ = [
    "REPORT_NAME",
    "HeldFolder",
    "OutputInUseError",
    "hold_folder",
    "is_result",
    "make_folder",
    "sync_folder",
]

REPORT_NAME = "report.json"
# A journal does not help against what a run was given.
HOPELESS = (TruthError, RoiError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def make_folder(final: Path, names: Collection[str], *, report: str = REPORT_NAME) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block succeeds and vanishes when it fails.

    Args:
        final: The folder to be.
        names: The files that a result may hold. An older result is replaced when it holds no others.
        report: The JSON file by which a result is known; its object has the key `histoseg`.

    Raises:
        OutputError: `final` is, or holds, somebody else's; or cannot be written; or another run writes it.
    """
    with hold_folder(final, names, report=report) as held:
        held.empty()
        yield held.part
        held.publish()


@dataclass
class HeldFolder:
    """A folder of results that nobody else writes meanwhile."""

    final: Path
    """What it is called once it is whole."""
    part: Path
    """Where it is written; what an earlier run has left may be in it."""
    names: frozenset[str]
    report: str
    journal: str | None
    is_published: bool = False

    def empty(self, keep: str | None = None) -> None:
        """Remove what an earlier run has left, but for the file of one name."""
        for path in self.part.iterdir():
            if path.name not in (keep, OWNER_NAME):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def publish(self) -> None:
        """Give what was written its name, in the place of an older result.

        All is on the disk before: a power cut keeps a rename, not data. The journal goes when only names are
        left to change; a run that is killed then leaves a whole result under the wrong name.

        Raises:
            OutputError: Somebody else's files lie there by now.
            OSError: It cannot be renamed.
        """
        refuse_foreign(self.final, self.names, self.report)
        _sync_files(self.part)
        for name in (OWNER_NAME, self.journal):
            if name is not None:
                (self.part / name).unlink(missing_ok=True)
        sync_folder(self.part)
        replaced = self.final.exists()
        if replaced:
            self.final.rename(self._old)
        self.part.replace(self.final)
        self.is_published = True
        sync_folder(self.final.parent)
        if replaced:
            shutil.rmtree(self._old, ignore_errors=True)

    def recover(self) -> None:
        """Give an earlier result its name back, or remove what is left of it, after a kill in `publish`."""
        if not self._old.is_dir():
            return
        if not self.final.exists() and is_result(self._old, self.report):
            self._old.rename(self.final)
        elif {path.name for path in self._old.iterdir()} <= self.names:
            shutil.rmtree(self._old, ignore_errors=True)

    def give_up(self, error: BaseException) -> None:
        """Leave the journal, if it may help, and else nothing."""
        self.recover()
        kept = None if isinstance(error, HOPELESS) else self.journal
        with suppress(OSError):
            if kept is not None and (self.part / kept).exists():
                self.empty(kept)
                return
        shutil.rmtree(self.part, ignore_errors=True)

    @property
    def _old(self) -> Path:
        return self.final.with_name(f".{self.final.name}.old")


@contextmanager
def hold_folder(
    final: Path, names: Collection[str], *, report: str = REPORT_NAME, journal: str | None = None
) -> Iterator[HeldFolder]:
    """Yield a folder that may be written and published; unless it is, nothing changes but what is in it.

    Args:
        final: The folder to be.
        names: The files that a result may hold.
        report: The JSON file by which a result is known; its object has the key `histoseg`.
        journal: A file that outlives a failure which is not the input's, for the next run to go on from; it
            is no part of the result.

    Raises:
        OutputError: `final` is, or holds, somebody else's; or cannot be written; or another run writes it.
    """
    final = _resolve(final)
    known = frozenset({*names, journal} - {None}) if journal else frozenset(names)
    refuse_foreign(final, known, report)
    held = HeldFolder(final, final.with_name(f".{final.name}.part"), known, report, journal)
    made = _missing_folders(held.part)
    with _naming_errors(held):
        try:
            with lock_folder(held.part, final):
                try:
                    held.recover()
                    refuse_foreign(final, known, report)
                    yield held
                except BaseException as error:
                    held.give_up(error)
                    raise
                finally:
                    if not held.is_published:
                        (held.part / OWNER_NAME).unlink(missing_ok=True)
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()  # only where it is empty


@contextmanager
def _naming_errors(held: HeldFolder) -> Iterator[None]:
    """Say of an error of writing here what it means."""
    try:
        yield
    except HistosegError:
        raise
    except OSError as error:
        if not _is_ours(error, held.part):
            raise
        advice = "make room, or choose another -o" if error.errno in NO_ROOM else "choose another -o"
        raise OutputError(f"{held.final}: cannot be written ({error.strerror or error}); {advice}") from error


def _is_ours(error: OSError, part: Path) -> bool:
    """Whether it came of writing here, and not of a slide or of a caller's function."""
    name = error.filename if isinstance(error.filename, str | os.PathLike) else ""
    return error.errno in NO_ROOM or Path(name).is_relative_to(part.parent)


def _resolve(final: Path) -> Path:
    """Return the folder that a path leads to: a link keeps leading where it led."""
    try:
        return final.resolve()
    except (RuntimeError, OSError) as error:  # a loop of links: which of the two depends on Python
        raise OutputError(
            f"{final}: cannot be written (its links lead in a circle); choose another -o"
        ) from error


def refuse_foreign(final: Path, names: Collection[str], report: str = REPORT_NAME) -> None:
    """Refuse a folder that is not, or not only, a result of this package.

    Raises:
        OutputError: It holds somebody else's files.
    """
    if not final.exists():
        return
    if not is_result(final, report):
        raise OutputError(
            f"{final} exists and holds no histoseg result, expected a free name; choose another -o"
        )
    strangers = sorted(path.name for path in final.iterdir() if path.name not in names)
    if strangers:
        raise OutputError(
            f"{final} holds '{strangers[0]}' besides a histoseg result, which would be lost; "
            "move it away, or choose another -o"
        )


def is_result(folder: Path, report: str = REPORT_NAME) -> bool:
    """Return whether a folder is one that this package has written."""
    try:
        document = json.loads((folder / report).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "histoseg" in document


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let a power cut forget no name in a folder, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _missing_folders(path: Path) -> list[Path]:
    """Return what does not exist yet of a folder and its parents, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]
