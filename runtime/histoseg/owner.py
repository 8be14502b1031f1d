"""Who writes a folder: a small file in it that names the process."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

OWNER_NAME = ".owner"


def write_owner(folder: Path) -> None:
    """Say that this process writes the folder."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _read_begin(os.getpid())}
    (folder / OWNER_NAME).write_text(json.dumps(owner), encoding="utf-8")


def is_owned(folder: Path) -> bool:
    """Return whether a process of this machine that still lives writes the folder.

    One of another machine cannot be asked, and counts as gone.
    """
    owner = _read_owner(folder)
    return (
        owner is not None
        and owner["host"] == socket.gethostname()
        and owner["since"] is not None
        and owner["since"] == _read_begin(owner["pid"])
    )


def name_owner(folder: Path) -> str:
    """Return who writes the folder, in words."""
    owner = _read_owner(folder)
    return f"another run (process {owner['pid']} on {owner['host']})" if owner else "another run"


def _read_owner(folder: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads((folder / OWNER_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys()
    return owner if whole and isinstance(owner["pid"], int) else None


def _read_begin(pid: int) -> float | None:
    """Return when a process began; `None` where it is gone. Two with one number never began at one time."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None
