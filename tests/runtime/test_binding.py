"""The buffers that GPU providers use, exercised on the CPU as their device."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.binding import BoundRunner
from histoseg.card import ModelCard
from histoseg.session import bind_runner
from histoseg.tensors import prepare_input


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def bind(model: Path, card: ModelCard) -> tuple[BoundRunner, onnxruntime.InferenceSession]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return bind_runner(onnxruntime, session, card, device="cpu", output_dtype="float32"), session


@pytest.fixture(params=["unet", "threshold", "nchw_float_logits"])
def bound(request: pytest.FixtureRequest, models: Path, open_model):
    """Give a runner, the same model run plainly, and what makes its input tensor."""
    card = open_model(request.param).card
    runner, session = bind(models / f"{request.param}.onnx", card)

    def run_plainly(tensor: np.ndarray) -> np.ndarray:
        return session.run([card.output.name], {card.input.name: tensor})[0]

    return runner, run_plainly, lambda rgb: prepare_input(rgb, card)


def test_bound_runs_equal_plain_ones_byte_for_byte(bound) -> None:
    runner, run_plainly, prepare = bound
    for seed in range(3):
        tensor = prepare(noise(1, 32, 48, seed=seed))
        assert runner(tensor).tobytes() == run_plainly(tensor).tobytes()


def test_a_result_is_nobodys_buffer(bound) -> None:
    """The engine keeps results while the next batch runs, and writes into them."""
    runner, run_plainly, prepare = bound
    tensors = [prepare(noise(1, 32, 32, seed=seed)) for seed in range(4)]
    results = []
    for tensor in tensors:
        results.append(runner(tensor))
        assert results[-1].flags.writeable
        results[-1][:] += 1
    for tensor, result in zip(tensors, results, strict=True):
        np.testing.assert_array_equal(result, run_plainly(tensor) + 1)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6)
)
def test_a_batch_of_another_shape_gets_other_buffers(models: Path, open_model, sizes) -> None:
    card = open_model("threshold").card
    runner, session = bind(models / "threshold.onnx", card)
    for seed, size in enumerate(sizes):
        tensor = noise(*size, seed=seed)
        np.testing.assert_array_equal(runner(tensor), session.run(None, {"image": tensor})[0])


def test_buffers_are_used_again(models: Path, open_model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        onnxruntime.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda *arguments: made.append(arguments) or allocate(*arguments),
    )
    runner, _ = bind(models / "conv.onnx", open_model("conv").card)
    for seed in range(5):
        runner(noise(2, 16, 16, seed=seed))
    assert [(shape, device) for shape, _, device in made] == [
        ((2, 16, 16, 3), "cpu"),
        ((2, 16, 16, 2), "cpu"),
    ]


class Meeting:
    """A session in which every run waits until as many threads have written their inputs as shall meet."""

    def __init__(self, session: onnxruntime.InferenceSession, threads: int) -> None:
        self._session = session
        self._barrier = Barrier(threads)
        self.io_binding = session.io_binding

    def run_with_iobinding(self, binding: object) -> None:
        self._barrier.wait(timeout=60)
        self._session.run_with_iobinding(binding)
        self._barrier.wait(timeout=60)


def test_several_threads_do_not_share_buffers(models: Path, open_model) -> None:
    threads, card = 4, open_model("unet").card
    session = onnxruntime.InferenceSession(models / "unet.onnx", providers=["CPUExecutionProvider"])
    runner = bind_runner(onnxruntime, Meeting(session, threads), card, device="cpu", output_dtype="float32")
    with ThreadPoolExecutor(threads) as pool:
        for wave in range(3):
            tensors = [noise(1, 32, 32, seed=wave * threads + i) for i in range(threads)]
            for tensor, result in zip(tensors, list(pool.map(runner, tensors)), strict=True):
                np.testing.assert_array_equal(result, session.run(None, {"image": tensor})[0])


def test_an_output_of_another_shape_than_the_card_says_fails(models: Path, open_model) -> None:
    card = open_model("threshold").card
    wrong = dataclasses.replace(card, output=dataclasses.replace(card.output, channels=1))
    runner, _ = bind(models / "threshold.onnx", wrong)
    with pytest.raises(RuntimeError, match=r"(?i)dimension|shape"):
        runner(noise(1, 8, 8))


def test_after_a_failure_it_runs_again(models: Path, open_model) -> None:
    """A tile of odd size does not fit the skip of this model."""
    runner, _ = bind(models / "unet.onnx", open_model("unet").card)
    good = noise(1, 32, 32)
    before = runner(good)
    with pytest.raises(RuntimeError):
        runner(noise(1, 33, 33))
    np.testing.assert_array_equal(runner(good), before)
