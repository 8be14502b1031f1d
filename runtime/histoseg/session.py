"""One ONNX model on one execution provider, run on batches of one shape.

A requested provider is used or refused; nothing falls back silently. onnxruntime is imported with the first
session, because its wheels are extras and slow to load.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from histoseg.card import METADATA_KEY, ModelCard, card_from_text, load_card
from histoseg.errors import CardError, ModelError, ProviderError
from histoseg.transform import apply_transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provider:
    """An execution provider: onnxruntime's name, the wheel that carries it, the options it gets."""

    ort_name: str
    wheel: str
    requirement: str
    """What pip installs for it: the wheel with its extras."""
    options: tuple[tuple[str, str], ...] = ()


PROVIDERS: dict[str, Provider] = {
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu", "onnxruntime-gpu[cuda,cudnn]"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        "onnxruntime-gpu[cuda,cudnn]",
        # TF32 off, so that CPU and GPU agree; an exhaustive search costs minutes and wins nothing here
        (("use_tf32", "0"), ("cudnn_conv_algo_search", "HEURISTIC")),
    ),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino", "onnxruntime-openvino"),
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", "onnxruntime"),
}
TENSOR_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
# what rounding in half precision may add to a probability
PROBABILITY_SLACK = 2e-3
AUTO_ORDER = ("cuda", "openvino", "cpu")
WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


class Session:
    """An open model: batches of RGB tiles in, probabilities out."""

    def __init__(self, ort_session: Any, model: Path, card: ModelCard, provider: str) -> None:
        """Wrap an onnxruntime session; use `open_session`."""
        self.name = model.name
        self.sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
        self.card = card
        self.provider = provider
        self._session = ort_session

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the model's memory."""
        self._session = None

    @property
    def batch_size(self) -> int | None:
        """The model's fixed batch size; `None` when it takes any."""
        return self.card.input.shape[0]

    def run(self, tiles: Pixels) -> Floats:
        """Predict a batch. Safe from several threads.

        Args:
            tiles: `(batch, height, width, 3)` uint8 RGB.

        Returns:
            `(batch, height, width, classes)` float32 probabilities.

        Raises:
            ModelError: The model fails, or its output has another shape than its card says.
        """
        card = self.card
        if self._session is None:
            raise ModelError(f"{self.name}: the session is closed; open it again with open_session")
        try:
            (raw,) = self._session.run([card.output.name], {card.input.name: prepare_input(tiles, card)})
        except Exception as error:
            raise ModelError(f"onnxruntime failed on the model: {_first_line(error)}") from error
        return read_output(raw, card, tiles.shape[:3])


def open_session(
    model: str | Path,
    *,
    provider: str = "auto",
    card: str | Path | None = None,
    threads: int | None = None,
) -> Session:
    """Load an ONNX model onto a provider.

    Args:
        model: An `.onnx` file, with its card inside or beside it (`model.json`).
        provider: `auto`, a key of `PROVIDERS`, or a name that onnxruntime knows. `auto` takes the first of
            CUDA, OpenVINO and CPU that works here and suits the model's precision.
        card: A sidecar that describes the model instead.
        threads: Threads for the operators; all that this process may use when `None`.

    Raises:
        ModelError: The file is missing, no ONNX model, or has no card.
        CardError: The card is not valid, or does not fit the model.
        ProviderError: The provider is not to be had here, or does not suit the model.
    """
    model = Path(model)
    if not model.is_file():
        raise ModelError(f"{model}: no such model file")
    _refuse_other_kinds(model)
    sidecar = Path(card) if card else None
    candidates = choose_providers(provider)
    for candidate in candidates:
        try:
            return _open_on(candidate, model, sidecar, threads or count_cpus())
        except ProviderError as error:
            if candidate == candidates[-1]:
                raise
            logger.warning("provider %s passed over: %s", candidate, error)
    raise AssertionError("choose_providers returned nothing")


def choose_providers(name: str) -> list[str]:
    """Resolve a provider's name to those to try, best first: one, unless the name is `auto`.

    Raises:
        ProviderError: The installed onnxruntime does not offer it; the message names the repair.
    """
    available = _import_onnxruntime().get_available_providers()
    if name == "auto":
        return [key for key in AUTO_ORDER if PROVIDERS[key].ort_name in available]
    key = next((key for key, known in PROVIDERS.items() if known.ort_name == name), name)
    ort_name = PROVIDERS[key].ort_name if key in PROVIDERS else name
    if ort_name in available:
        return [key]
    raise ProviderError(
        f"provider '{name}' is not in this onnxruntime, which offers {', '.join(available)}; {_repair(key)}"
    )


def _open_on(provider: str, model: Path, sidecar: Path | None, threads: int) -> Session:
    session = _load(model, provider, threads)
    _check_placement(session, provider)
    card = _find_card(session, model, sidecar)
    if provider in PROVIDERS and provider not in card.providers:
        raise ProviderError(
            f"{model}: a model in {card.precision} is not for provider '{provider}', "
            f"expected one of {', '.join(card.providers)}; use that, or export another precision"
        )
    _check_tensors(session, card, model)
    return Session(session, model, card, provider)


def known_provider(name: str) -> bool:
    """Tell whether a name is `auto`, a provider of ours, or one that onnxruntime knows."""
    if name == "auto" or name in PROVIDERS:
        return True
    return name in _import_onnxruntime().get_all_providers()


def installed_wheels() -> dict[str, str]:
    """Return the onnxruntime wheels in this environment, with their versions; there should be one."""
    found = {}
    for wheel in WHEELS:
        try:
            found[wheel] = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    return found


def count_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, and its cgroup's quota where there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed


def prepare_input(tiles: Pixels, card: ModelCard) -> NDArray[Any]:
    """Return the tensor the card asks for, from `(batch, height, width, 3)` uint8 RGB."""
    values: NDArray[Any] = tiles
    if card.transform or card.input.dtype != "uint8":
        values = apply_transform(tiles, card.transform).astype(card.input.dtype, copy=False)
    if card.input.channel_order == "BGR":
        values = values[..., ::-1]
    if card.input.layout == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values)


def read_output(raw: Any, card: ModelCard, batch: tuple[int, ...]) -> Floats:
    """Return `(batch, height, width, classes)` float32 probabilities from the model's output tensor.

    Raises:
        ModelError: The output has another shape than the card says.
    """
    if card.output.layout == "NCHW" and getattr(raw, "ndim", 0) == 4:
        raw = raw.transpose(0, 2, 3, 1)
    expected = (*batch, card.output.channels)
    if raw.shape != expected:
        raise ModelError(f"the model's output is {raw.shape} (NHWC), expected {expected} from its card")
    values: Floats = raw.astype(np.float32, copy=False)
    if card.output.activation == "logits":
        values = _sigmoid(values) if card.output.channels == 1 else _softmax(values)
    low, high = float(values.min()), float(values.max())
    if not (low >= -PROBABILITY_SLACK and high <= 1 + PROBABILITY_SLACK):  # also when one of them is NaN
        raise ModelError(
            f"the model's output lies between {low:g} and {high:g}, expected probabilities; its card says "
            f"'{card.output.activation}': set output.activation to what the model really gives"
        )
    if card.output.channels == 1:
        values = np.concatenate([1 - values, values], axis=-1)
    return values


def _sigmoid(logits: Floats) -> Floats:
    # tanh form: never overflows
    result: Floats = np.float32(0.5) * (np.tanh(logits * np.float32(0.5)) + np.float32(1))
    return result


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def _import_onnxruntime() -> Any:
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise ProviderError(
            f"{' and '.join(wheels)} are installed side by side and break each other (one module, several "
            f"wheels); repair with: pip uninstall -y {' '.join(wheels)} && pip install onnxruntime "
            "(or one of the others)"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime cannot be imported ({_first_line(error)}); "
            "install one: pip install onnxruntime (or 'onnxruntime-gpu[cuda,cudnn]', onnxruntime-openvino)"
        ) from error
    return onnxruntime


def _refuse_other_kinds(model: Path) -> None:
    try:
        with model.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise ModelError(f"{model}: cannot be read ({error.strerror})") from error
    if head.startswith((b"PK\x03\x04", b"\x89HDF")):
        raise ModelError(f"{model}: is a Keras model, expected ONNX; run histoseg-export {model} first")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{model}: is a Git LFS pointer, expected ONNX; fetch the file with `git lfs pull`")


def _load(model: Path, provider: str, threads: int) -> Any:
    ort = _import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # our own batches have one shape: plan memory once, and let idle threads sleep for the readers
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    known = PROVIDERS.get(provider)
    name, settings = (known.ort_name, dict(known.options)) if known else (provider, {})
    try:
        return ort.InferenceSession(str(model), options, providers=[(name, settings)], enable_fallback=0)
    except Exception as error:
        if type(error).__name__ == "EPFail":
            raise ProviderError(
                f"provider '{provider}' fails here ({_first_line(error)}); {_repair(provider)}"
            ) from error
        raise ModelError(
            f"{model}: not an ONNX model that onnxruntime loads ({_first_line(error)})"
        ) from error


def _check_placement(session: Any, provider: str) -> None:
    known = PROVIDERS.get(provider)
    wanted = known.ort_name if known else provider
    active = session.get_providers()
    if wanted not in active:
        raise ProviderError(
            f"provider '{provider}' was asked for but onnxruntime fell back to {', '.join(active)}; "
            f"{_repair(provider)}"
        )


def _repair(provider: str) -> str:
    known = PROVIDERS.get(provider)
    if known is None:
        return "see histoseg-doctor"
    others = " ".join(wheel for wheel in installed_wheels() if wheel != known.wheel)
    remove = f"pip uninstall -y {others} && " if others else ""
    return f"repair with: {remove}pip install '{known.requirement}', then histoseg-doctor"


def _find_card(session: Any, model: Path, sidecar: Path | None) -> ModelCard:
    if sidecar is not None:
        return load_card(sidecar)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is not None:
        try:
            return card_from_text(text)
        except CardError as error:
            raise CardError(f"{model}: {error}") from error
    beside = model.with_suffix(".json")
    if beside.is_file():
        return load_card(beside)
    raise ModelError(
        f"{model}: no model card inside and no {beside.name} beside it; "
        "export the model with histoseg-export, or describe it with --card"
    )


def _check_tensors(session: Any, card: ModelCard, model: Path) -> None:
    inputs, outputs = ([v.name for v in values] for values in (session.get_inputs(), session.get_outputs()))
    if inputs != [card.input.name]:
        expected = ", ".join(inputs) or "a model with an input"
        raise CardError(f"{model}: field 'input.name' is {card.input.name!r}, expected {expected}")
    dtype = TENSOR_TYPES.get(session.get_inputs()[0].type, session.get_inputs()[0].type)
    if dtype != card.input.dtype:
        raise CardError(f"{model}: field 'input.dtype' is {card.input.dtype}, but the model takes {dtype}")
    if card.output.name not in outputs:
        raise CardError(
            f"{model}: field 'output.name' is {card.output.name!r}, expected one of {', '.join(outputs)}"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
