"""The processor: how many CPUs this process may use, and which int8 instructions they have."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path("/")

# What /proc/cpuinfo calls the instructions that int8 kernels are written for.
INT8_FLAGS = {
    "avx2": "AVX2",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-int8",
    "asimddp": "ARM dotprod",
    "i8mm": "ARM i8mm",
}
# Those that add four products of int8 in one step, without a 16-bit sum between that could overflow.
INT8_DOT_PRODUCTS = frozenset({"AVX512-VNNI", "AVX-VNNI", "AMX-int8", "ARM dotprod", "ARM i8mm"})


def count_cpus(root: Path = ROOT) -> int:
    """Return how many CPUs this process may use, at least 1.

    Its affinity, and the quotas of its cgroups (version 2 or 1), where there are such; a fraction of a CPU
    counts as one.

    Args:
        root: Where `proc` and `sys` are found.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, iter_cpu_quotas(root))]))


def iter_cpu_quotas(root: Path = ROOT) -> Iterator[float]:
    """Yield the CPUs that each cgroup above this process grants, where it sets a limit.

    Sources: kernel.org, admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).
    """
    mount = root / "sys" / "fs" / "cgroup"
    for controllers, path in _read_cgroups(root / "proc" / "self" / "cgroup"):
        if controllers == [""]:
            yield from _climb(mount, path, _read_quota_v2)
        elif "cpu" in controllers:
            # the folder is named after the controllers that share it; `cpu` is a link to it
            for name in {"cpu", ",".join(controllers)}:
                yield from _climb(mount / name, path, _read_quota_v1)


def read_int8_instructions(root: Path = ROOT) -> frozenset[str] | None:
    """Return the int8 instructions of this processor, as `INT8_FLAGS` names them; `None` when unknown.

    Args:
        root: Where `proc` is found; only Linux has it.
    """
    try:
        text = (root / "proc" / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    if line is None:
        return None
    return frozenset(INT8_FLAGS[flag] for flag in line[1].split() if flag in INT8_FLAGS)


def explain_int8(instructions: frozenset[str] | None) -> str:
    """Return what a processor's instructions mean for int8 models, in words."""
    if instructions is None:
        return "unknown on this system"
    names = ", ".join(sorted(instructions)) or "none"
    if instructions & INT8_DOT_PRODUCTS:
        return f"{names}: int8 models run fast"
    return f"{names}, no dot product: int8 models gain little and may round otherwise; prefer fp32"


def _read_cgroups(path: Path) -> list[tuple[list[str], str]]:
    """Return controllers and path of each cgroup this process is in; version 2 names no controllers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = [line.split(":", 2) for line in lines]
    return [(row[1].split(","), row[2]) for row in rows if len(row) == 3]


def _climb(mount: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Yield what `read` finds in a cgroup and all those above it.

    A container sees its own cgroup as the mount itself, under whatever path the host gave it.
    """
    folder = mount / path.lstrip("/")
    for candidate in (folder, *folder.parents):
        quota = read(candidate)
        if quota is not None:
            yield quota
        if candidate == mount:
            return


def _read_quota_v2(folder: Path) -> float | None:
    return _divide(_read_words(folder / "cpu.max"))


def _read_quota_v1(folder: Path) -> float | None:
    return _divide(_read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us"))


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []


def _divide(words: list[str]) -> float | None:
    """Return quota over period; `None` for `max`, -1 and all else that sets no limit."""
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None
    quota, period = map(int, words)
    return quota / period if quota and period else None
