"""The execution providers as data: names, wheels, options, and which precision suits which."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from string import Template
from typing import TYPE_CHECKING, Any

from histoseg.errors import ProviderError

if TYPE_CHECKING:
    from histoseg.card import ModelCard, Precision

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Provider:
    """An execution provider: onnxruntime's name, the wheel that carries it, the options it gets."""

    ort_name: str
    wheel: str
    requirement: str
    """What pip installs for it: the wheel with its extras."""
    options: Options = ()
    """Names and values as onnxruntime takes them; `$threads` stands for the threads it may use."""
    precision_options: tuple[tuple[Precision, Options], ...] = ()
    """Options that models of a precision get besides."""
    environment: Options = ()
    """Variables that its libraries read, set unless they are set already: for what has no option."""
    device: str | None = None
    """Where its tensors live, as onnxruntime names it; `None` for the process's own memory."""
    then: str | None = None
    """Our name of the provider that takes the nodes this one cannot run, before the CPU does."""


PROVIDERS: dict[str, Provider] = {
    # onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        "onnxruntime-gpu[cuda,cudnn]",
        # nothing is written beside the model or into the working folder; True and False are words here
        options=(("trt_engine_cache_enable", "False"), ("trt_timing_cache_enable", "False")),
        precision_options=(
            ("fp16", (("trt_fp16_enable", "True"),)),
            ("int8", (("trt_int8_enable", "True"),)),
        ),
        # TensorRT's builder uses TF32 by default and onnxruntime has no option for it
        environment=(("NVIDIA_TF32_OVERRIDE", "0"),),
        device="cuda",
        then="cuda",
    ),
    # onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    "cuda": Provider(
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        "onnxruntime-gpu[cuda,cudnn]",
        options=(
            # so that CPU and GPU agree
            ("use_tf32", "0"),
            # an exhaustive search costs minutes and wins nothing here
            ("cudnn_conv_algo_search", "HEURISTIC"),
            # batches have one shape: what the first one needed is enough, no power of two beyond it
            ("arena_extend_strategy", "kSameAsRequested"),
        ),
        device="cuda",
    ),
    # onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        "onnxruntime-openvino",
        options=(
            ("device_type", "CPU"),
            # left alone, OpenVINO may run fp32 in bf16 where the processor has it; int8 stays int8
            (
                "load_config",
                '{"CPU": {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", '
                '"INFERENCE_NUM_THREADS": "$threads"}}',
            ),
        ),
    ),
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", "onnxruntime"),
}
AUTO_ORDER = ("cuda", "openvino", "cpu")
WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-training",
)

# Providers of ours that a precision is not for, whatever a card says, and why; the rest is up to the card.
UNSUITED: dict[Precision, dict[str, str]] = {
    "fp32": {},
    "fp16": {},
    "int8": {"cuda": "onnxruntime has no int8 convolutions for it, which makes it 10 to 20 times slower"},
}


def find_key(name: str) -> str:
    """Return our name of a provider that may be named as onnxruntime does; other names as they are."""
    return next((key for key, known in PROVIDERS.items() if known.ort_name == name), name)


def find_ort_name(name: str) -> str:
    """Return onnxruntime's name of a provider."""
    return PROVIDERS[name].ort_name if name in PROVIDERS else name


def choose_providers(name: str) -> list[str]:
    """Resolve a provider's name to those to try, best first: one, unless the name is `auto`.

    Raises:
        ProviderError: The installed onnxruntime does not offer it; the message names the repair.
    """
    available = import_onnxruntime().get_available_providers()
    if name == "auto":
        return [key for key in AUTO_ORDER if PROVIDERS[key].ort_name in available]
    key = find_key(name)
    if find_ort_name(key) in available:
        return [key]
    raise ProviderError(
        f"provider '{name}' is not in this onnxruntime, which offers "
        f"{', '.join(map(find_key, available))}; "
        f"{suggest_install(key)}"
    )


def known_provider(name: str) -> bool:
    """Tell whether a name is `auto`, a provider of ours, or one that onnxruntime knows."""
    if name == "auto" or name in PROVIDERS:
        return True
    return name in import_onnxruntime().get_all_providers()


def has_device(name: str) -> bool:
    """Return whether a provider, by its key in `PROVIDERS`, runs models on a device of its own: a GPU."""
    return name in PROVIDERS and PROVIDERS[name].device is not None


def require_suited(provider: str, card: ModelCard, name: str) -> None:
    """Refuse a provider that a model's precision is not for, whatever its card says; or its card refuses.

    Args:
        provider: Our name, or onnxruntime's for one that is not in `PROVIDERS`.
        card: The model's card.
        name: The model's name, for the message.

    Raises:
        ProviderError: The message names those that suit the model.
    """
    unsuited = UNSUITED[card.precision]
    suited = [key for key in card.providers if key not in unsuited]
    if provider in suited or provider not in PROVIDERS:
        return
    reason = f" ({unsuited[provider]})" if provider in unsuited else ""
    raise ProviderError(
        f"{name}: a model in {card.precision} is not for provider '{provider}'{reason}, expected one of "
        f"{', '.join(suited or [key for key in PROVIDERS if key not in unsuited])}; "
        "use that, or export another precision"
    )


def list_arguments(provider: str, precision: Precision, threads: int) -> list[tuple[str, dict[str, str]]]:
    """Return names and options for `onnxruntime.InferenceSession`, first the provider that was asked for.

    The CPU, which takes what is left, is added by onnxruntime itself.
    """
    known = PROVIDERS.get(provider)
    if known is None:
        return [(provider, {})]
    options = (*known.options, *dict(known.precision_options).get(precision, ()))
    filled = {name: Template(value).substitute(threads=threads) for name, value in options}
    rest = list_arguments(known.then, precision, threads) if known.then else []
    return [(known.ort_name, filled), *rest]


def installed_wheels() -> dict[str, str]:
    """Return the onnxruntime wheels in this environment, with their versions; there should be one."""
    found = {}
    for wheel in WHEELS:
        try:
            found[wheel] = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    return found


def import_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        ProviderError: There is none, or more than one wheel of it.
    """
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise ProviderError(
            f"{' and '.join(wheels)} are installed side by side and break each other (one module, several "
            f"wheels); repair with: pip uninstall -y {' '.join(wheels)} && pip install onnxruntime "
            "(or one of the others)"
        )
    try:
        import onnxruntime

        # what is left of the module when one of two wheels was removed imports, but is empty
        onnxruntime.InferenceSession  # noqa: B018
    except (ImportError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ProviderError(
            f"onnxruntime cannot be used ({first}); install one: pip install --force-reinstall onnxruntime "
            "(or 'onnxruntime-gpu[cuda,cudnn]', onnxruntime-openvino)"
        ) from error
    return onnxruntime


def suggest_install(provider: str) -> str:
    """Return what to do to have a provider."""
    line = find_install(provider)
    return f"repair with: {line}, then histoseg-doctor" if line else "see histoseg-doctor"


def find_install(provider: str) -> str:
    """Return the line that installs a provider's wheel, and removes those that it would clash with.

    Nothing for a provider that is not in `PROVIDERS`.
    """
    known = PROVIDERS.get(provider)
    if known is None:
        return ""
    others = " ".join(wheel for wheel in installed_wheels() if wheel != known.wheel)
    remove = f"pip uninstall -y {others} && " if others else ""
    return f"{remove}pip install '{known.requirement}'"
