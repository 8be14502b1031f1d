"""One ONNX model on one execution provider, run on batches of one shape.

A requested provider is used or refused; nothing falls back silently. onnxruntime is imported with the first
session, because its wheels are extras and slow to load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from histoseg.binding import Binding, BoundRunner
from histoseg.card import METADATA_KEY, ModelCard, card_from_text, load_card
from histoseg.cpu import INT8_DOT_PRODUCTS, read_int8_instructions
from histoseg.errors import CardError, HistosegError, ModelError, ProviderError
from histoseg.libraries import shorten, suggest_repair
from histoseg.load import count_placement, load_on, load_plainly, require_placement
from histoseg.providers import PROVIDERS, choose_providers, has_device, import_onnxruntime, require_suited
from histoseg.tensors import prepare_input, read_output, shape_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels

    Runner = Callable[[NDArray[Any]], NDArray[Any]]


logger = logging.getLogger(__name__)

TENSOR_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
# `TensorProto.external_data` of ONNX, as protobuf writes it: the key `location` and a path below 128 bytes.
EXTERNAL_PATH = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])([^\0]{1,127})", re.DOTALL)
# What a run on a GPU fails with when the fault is the machine's, not the model's.
DEVICE_FAILURE = re.compile(r"cudnn|(?:CUDA|CUBLAS) failure|out of memory|failed to allocate", re.IGNORECASE)


class Session:
    """An open model: batches of RGB tiles in, probabilities out."""

    def __init__(
        self, model: Path, card: ModelCard, provider: str, placement: dict[str, int] | None, runner: Runner
    ) -> None:
        """Wrap what runs the model; use `open_session`."""
        self.name = model.name
        self.sha256 = hash_model(model)
        self.card = card
        self.provider = provider
        self.placement = placement
        """Nodes of the model's graph on each provider; `None` where onnxruntime cannot tell."""
        self.resident_bytes: dict[tuple[int, ...], int] = {}
        """What the process held once batches of a shape had run; see `histoseg.memory`."""
        self._runner: Runner | None = runner

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the model's memory, and the buffers on its device."""
        self._runner = None

    @property
    def batch_size(self) -> int | None:
        """The model's fixed batch size; `None` when it takes any."""
        return self.card.input.shape[0]

    def run(self, tiles: Pixels) -> Floats:
        """Predict a batch.

        Safe from several threads: onnxruntime's sessions are, and on a GPU every call that runs at the same
        time has buffers of its own. The result is the caller's, to keep and to write into.

        Args:
            tiles: `(batch, height, width, 3)` uint8 RGB.

        Returns:
            `(batch, height, width, classes)` float32 probabilities.

        Raises:
            ModelError: The model fails, or its output has another shape than its card says.
            ProviderError: The provider's libraries or its device fail.
        """
        runner = self._runner
        if runner is None:
            raise ModelError(f"{self.name}: the session is closed; open it again with open_session")
        try:
            raw = runner(prepare_input(tiles, self.card))
        except Exception as error:
            raise _name_run_failure(self.provider, str(error)) from error
        return read_output(raw, self.card, tiles.shape[:3])


def hash_model(model: Path) -> str:
    """Return the SHA-256 of a model's file, and of weights that lie in files beside it."""
    data = model.read_bytes()
    digest = hashlib.sha256(data)
    for name in sorted({found[2][: found[1][0]] for found in EXTERNAL_PATH.finditer(data)}):
        file = model.parent / os.fsdecode(name)
        if file.is_file():
            digest.update(name)
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


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
        threads: Threads for the operators; when `None`, all that this process may use, and few on a GPU.

    Raises:
        ModelError: The file is missing, no ONNX model, or has no card.
        CardError: The card is not valid, or does not fit the model.
        ProviderError: The provider is not to be had here, runs no node of the model, or does not suit it.
    """
    model = Path(model)
    if not model.is_file():
        raise ModelError(f"{model}: no such model file")
    _refuse_other_kinds(model)
    sidecar = Path(card) if card else None
    candidates = choose_providers(provider)
    for candidate in candidates:
        try:
            return _open_on(candidate, model, sidecar, threads)
        except ProviderError as error:
            if candidate == candidates[-1]:
                raise
            logger.warning("provider %s passed over: %s", candidate, error)
    raise AssertionError("choose_providers returned nothing")


def _open_on(provider: str, model: Path, sidecar: Path | None, threads: int | None) -> Session:
    ort = import_onnxruntime()
    peeked = _peek_card(ort, provider, model, sidecar)
    if peeked:
        require_suited(provider, peeked, str(model))
    precision = peeked.precision if peeked else "fp32"
    session = load_on(ort, provider, model, precision=precision, threads=threads)
    card = _find_card(session, model, sidecar)
    require_suited(provider, card, str(model))
    _check_tensors(session, card, model)
    placement = count_placement(session)
    require_placement(placement, provider, model.name)
    if card.precision == "int8" and provider == "cpu":
        _warn_of_int8(model)
    return Session(model, card, provider, placement, _choose_runner(ort, session, provider, card))


def _peek_card(ort: Any, provider: str, model: Path, sidecar: Path | None) -> ModelCard | None:
    """Return the card before a provider starts its device or builds its engine.

    `None` for the CPU, which loads the model anyway, and for what the CPU cannot load.
    """
    if provider == "cpu":
        return None
    try:
        return _find_card(load_plainly(ort, model), model, sidecar)
    except ModelError:
        return None


def _choose_runner(ort: Any, session: Any, provider: str, card: ModelCard) -> Runner:
    """Return what runs a session: with buffers on its device, or as onnxruntime does it by itself."""
    known = PROVIDERS.get(provider)
    dtypes = {value.name: TENSOR_TYPES.get(value.type) for value in session.get_outputs()}
    dtype = dtypes[card.output.name]
    if known and known.device and dtype:
        return bind_runner(ort, session, card, device=known.device, output_dtype=dtype)

    def run(tensor: NDArray[Any]) -> NDArray[Any]:
        # binding wins nothing on the CPU, where no copy is saved
        outputs: list[NDArray[Any]] = session.run([card.output.name], {card.input.name: tensor})
        return outputs[0]

    return run


def bind_runner(ort: Any, session: Any, card: ModelCard, *, device: str, output_dtype: str) -> BoundRunner:
    """Return what runs a session on reused buffers.

    Args:
        ort: The onnxruntime module.
        session: An `onnxruntime.InferenceSession`.
        card: The model's card.
        device: Where the buffers lie, as onnxruntime names it.
        output_dtype: What the output tensor holds, as NumPy names it.
    """
    names = card.input.name, card.output.name
    return BoundRunner(ort, session, Binding(device, *names, output_dtype, partial(shape_output, card)))


def _name_run_failure(provider: str, said: str) -> HistosegError:
    """Return the error that a failed run is: the provider's, when it speaks of NVIDIA's libraries."""
    if has_device(provider) and DEVICE_FAILURE.search(said):
        return ProviderError(
            f"provider '{provider}' failed: {shorten(said)}; {suggest_repair(provider, said)}"
        )
    return ModelError(f"onnxruntime failed on the model: {shorten(said)}")


def _warn_of_int8(model: Path) -> None:
    instructions = read_int8_instructions()
    if instructions is not None and not instructions & INT8_DOT_PRODUCTS:
        logger.warning(
            "%s is an int8 model, but this processor has no int8 dot product (VNNI): it gains little and may "
            "round otherwise than when it was proven; prefer the fp32 model",
            model,
        )


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
    _check_shape(session.get_inputs()[0].shape, card, model)
    if card.output.name not in outputs:
        raise CardError(
            f"{model}: field 'output.name' is {card.output.name!r}, expected one of {', '.join(outputs)}"
        )


def _check_shape(found: list[int | str | None], card: ModelCard, model: Path) -> None:
    """Refuse a card that promises sizes which the model does not take.

    Args:
        found: What onnxruntime says of the input: sizes, names of free sizes; nothing for any rank.
        card: The model's card.
        model: The file.
    """
    taken, layout = [size if isinstance(size, int) else None for size in found], card.input.layout
    width, height = card.patch_size_pixels
    tile = (None, height, width, 3) if layout == "NHWC" else (None, 3, height, width)
    fed = [stated or side for stated, side in zip(card.input.shape, tile, strict=True)]
    fits = len(taken) == len(fed) and all(want in (None, side) for want, side in zip(taken, fed, strict=True))
    if taken and not fits:
        raise CardError(
            f"{model}: field 'input.shape' is {json.dumps(card.input.shape)} ({layout}, tiles of "
            f"{width}x{height} px), but the model takes {json.dumps(taken)}; state these sizes in the card, "
            "and 'input.layout' and 'patch_size_pixels' that match them"
        )
