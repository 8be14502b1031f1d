"""Turns a model file into an onnxruntime session on one provider, or names what kept it from being one."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoseg.cpu import count_cpus
from histoseg.errors import HistosegError, ModelError, ProviderError
from histoseg.libraries import explain_failure, prepare_libraries, shorten
from histoseg.providers import find_key, find_ort_name, has_device, list_arguments

if TYPE_CHECKING:
    from histoseg.card import Precision

logger = logging.getLogger(__name__)

# Idle threads of the model sleep, so that readers have the cores ("0"), or wait busily ("1").
ALLOW_SPINNING = "0"
# Threads for what a model on a GPU still does on the CPU; the readers have the other cores.
GPU_THREADS = 2
# onnxruntime's severity that keeps to itself what its exceptions say anyway
SEVERITY_FATAL = 4


def load_on(ort: Any, provider: str, model: Path, *, precision: Precision, threads: int | None) -> Any:
    """Return an `onnxruntime.InferenceSession` on a provider.

    Args:
        ort: The onnxruntime module.
        provider: Our name, or onnxruntime's for one that is not in `PROVIDERS`.
        model: An ONNX file.
        precision: The model's, for providers that must be told.
        threads: Threads for the operators; when `None`, all that this process may use, and few on a GPU.

    Raises:
        ModelError: It is no model that onnxruntime loads.
        ProviderError: The provider does not work here; the message says what is missing and what helps.
    """
    threads = threads or _choose_threads(provider)
    arguments = list_arguments(provider, precision, threads)
    try:
        with prepare_libraries(ort, provider):
            session = ort.InferenceSession(
                str(model), _build_options(ort, threads), providers=arguments, enable_fallback=0
            )
    except Exception as error:
        raise _name_failure(ort, provider, model, str(error)) from error
    if find_ort_name(provider) not in session.get_providers():
        raise ProviderError(f"provider '{provider}' does not work here: {explain_failure(ort, provider)}")
    return session


def load_plainly(ort: Any, model: Path) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU that is there to be read, not run.

    Raises:
        ModelError: It is no model that onnxruntime loads.
    """
    options = _build_options(ort, 1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"{model}: not an ONNX model that onnxruntime loads ({shorten(str(error))})"
        ) from error


def _choose_threads(provider: str) -> int:
    return min(count_cpus(), GPU_THREADS) if has_device(provider) else count_cpus()


def _build_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SEVERITY_FATAL
    # the pattern of a first run is laid out anew by the second, in as much memory again, and wins no time
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", ALLOW_SPINNING)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _name_failure(ort: Any, provider: str, model: Path, said: str) -> HistosegError:
    """Return the error that a failed load is: the model's, when the CPU cannot load it either."""
    if provider != "cpu":
        try:
            load_plainly(ort, model)
        except ModelError as error:
            return error
        return ProviderError(
            f"provider '{provider}' cannot run {model.name} here: {explain_failure(ort, provider, said)}"
        )
    return ModelError(f"{model}: not an ONNX model that onnxruntime loads ({shorten(said)})")


def count_placement(session: Any) -> dict[str, int] | None:
    """Return how many nodes of a graph run on each provider, by our names; `None` when it cannot be told.

    Counted once the graph's basic optimizations are done, before nodes fuse into kernels.

    Args:
        session: An `onnxruntime.InferenceSession` opened with `session.record_ep_graph_assignment_info`.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[find_key(part.ep_name)] += len(part.get_nodes())
    return dict(counts)


def require_placement(placement: dict[str, int] | None, provider: str, model: str) -> None:
    """Refuse a provider that got no node, and say so when other providers got some.

    Raises:
        ProviderError: All of the model's nodes run elsewhere.
    """
    elsewhere = {key: count for key, count in (placement or {}).items() if key != provider}
    if not placement or not elsewhere:
        return
    others = ", ".join(f"{count} on {key}" for key, count in elsewhere.items())
    total = sum(placement.values())
    if provider not in placement:
        raise ProviderError(
            f"provider '{provider}' runs none of the {total} nodes of {model} ({others}), expected at least "
            f"one; use --provider {next(iter(elsewhere))}"
        )
    logger.warning("provider %s runs %d of %d nodes; %s", provider, placement[provider], total, others)
