"""The shared libraries that NVIDIA's providers need: those that pip installed load, the missing are named."""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from histoseg.providers import PROVIDERS, suggest_install

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# What a failure names, and what helps; the first that matches counts.
REPAIRS = (
    (r"out of memory|Failed to allocate memory", "run fewer tiles at a time (--batch)"),
    (
        r"libcuda\.so|nvcuda|CUDA-capable device|driver version is insufficient|CUDA failure",
        "install a current NVIDIA driver, until nvidia-smi lists a GPU",
    ),
    (r"nvinfer|nvonnxparser", "install TensorRT 10 where the loader finds its libraries (LD_LIBRARY_PATH)"),
)
# onnxruntime's severities: its own default is to warn
SEVERITY_WARNING, SEVERITY_FATAL = 2, 4


@contextmanager
def prepare_libraries(ort: Any, provider: str) -> Iterator[None]:
    """Load what pip installed for a provider on a GPU; inside the block onnxruntime keeps quiet.

    What onnxruntime would print about a missing library is said by `explain_failure` instead. The libraries
    stay loaded; its default log level is a warning again afterwards.
    """
    known = PROVIDERS.get(provider)
    if known is None or known.device is None:
        yield
        return
    for name, value in known.environment:
        os.environ.setdefault(name, value)
    with redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    ort.set_default_logger_severity(SEVERITY_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(SEVERITY_WARNING)


def explain_failure(ort: Any, provider: str, said: str = "") -> str:
    """Return why a provider failed, and the repair, in one line.

    Args:
        ort: The onnxruntime module.
        provider: Our name, or onnxruntime's.
        said: What onnxruntime said; nothing when it fell back to the CPU without a word.
    """
    missing = find_missing(ort, provider)
    cause = f"{' and '.join(missing)} cannot be loaded" if missing else shorten(said)
    repairs = dict.fromkeys(suggest_repair(provider, name) for name in missing or [cause])
    cause = cause or "onnxruntime fell back to the CPU"
    return "; ".join([cause, *repairs, "or use --provider cpu"])


def find_missing(ort: Any, provider: str) -> list[str]:
    """Return the shared libraries whose absence stops a provider on a GPU: the driver, and the first other.

    Only after onnxruntime itself has tried: its own libraries cannot be opened before.
    """
    known = PROVIDERS.get(provider)
    if known is None or known.device is None:
        return []
    names = [DRIVER] if _try_open(DRIVER) else []
    stem = "onnxruntime_providers_" + known.ort_name.removesuffix("ExecutionProvider").lower()
    file = f"{stem}.dll" if sys.platform == "win32" else f"lib{stem}.so"
    own = Path(ort.__file__).parent / "capi" / file
    match = re.match(r"(\S+): cannot open shared object file", _try_open(own)) if own.is_file() else None
    return list(dict.fromkeys([*names, *([match[1]] if match else [])]))


def suggest_repair(provider: str, cause: str) -> str:
    """Return what repairs a cause: a library's name, or what onnxruntime said."""
    for pattern, repair in REPAIRS:
        if re.search(pattern, cause):
            return repair
    return suggest_install(provider)


def shorten(said: str) -> str:
    """Return what matters in an error of onnxruntime, in one line: its failure, without the C++ around it.

    Of several lines the second says what was found and expected; what follows repeats it, or is a stack.
    """
    match = re.search(r"\b(?:CUDA|CUDNN\w*|CUBLAS|TensorRT) failure \d+: [^;]+", said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return match[0].strip() if match else " ".join(lines[:2])


def _try_open(library: str | Path) -> str:
    """Return why a shared library cannot be opened; nothing when it can."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""
