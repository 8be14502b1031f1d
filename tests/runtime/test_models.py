"""Which of the default model's files runs where."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from histoseg import models
from histoseg.demo import draw_slide
from histoseg.models import choose_default_model, default_model
from histoseg.providers import AUTO_ORDER, PROVIDERS, require_suited
from histoseg.session import open_session

Here = Callable[[Sequence[str], set[str]], None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Make the environment one of some wheels, and the processor one of some instructions."""

    def pretend(wheels: Sequence[str], instructions: set[str]) -> None:
        monkeypatch.setattr(models, "installed_wheels", lambda: dict.fromkeys(wheels, "1.0"))
        monkeypatch.setattr(models, "read_int8_instructions", lambda: frozenset(instructions))

    return pretend


@pytest.mark.parametrize(
    ("provider", "wheel", "instructions", "precision"),
    [
        ("auto", "onnxruntime", {"AVX2", "AVX512-VNNI"}, "int8"),
        ("auto", "onnxruntime", {"ARM dotprod"}, "int8"),
        ("auto", "onnxruntime", {"AVX2"}, "fp32"),
        ("auto", "onnxruntime", set(), "fp32"),
        ("auto", "onnxruntime-openvino", {"AVX-VNNI"}, "int8"),
        ("auto", "onnxruntime-gpu", {"AVX512-VNNI"}, "fp32"),
        ("cpu", "onnxruntime-gpu", {"AVX512-VNNI"}, "int8"),
        ("CPUExecutionProvider", "onnxruntime", {"AVX512-VNNI"}, "int8"),
        ("cuda", "onnxruntime-gpu", {"AVX512-VNNI"}, "fp32"),
        ("tensorrt", "onnxruntime-gpu", {"AVX512-VNNI"}, "fp32"),
    ],
)
def test_int8_is_for_processors_with_dot_products(
    here: Here, provider: str, wheel: str, instructions: set[str], precision: str
) -> None:
    here([wheel], instructions)
    assert choose_default_model(provider) == default_model("int8" if precision == "int8" else "fp32")


def test_two_wheels_or_none_choose_fp32(here: Here) -> None:
    for wheels in ([], ["onnxruntime", "onnxruntime-gpu"]):
        here(wheels, {"AVX512-VNNI"})
        assert choose_default_model() == default_model()


def test_every_choice_suits_its_provider(here: Here) -> None:
    cards = {path: open_card(path) for path in (default_model(), default_model("int8"))}
    for provider in AUTO_ORDER:
        here([PROVIDERS[provider].wheel], {"AVX512-VNNI"})
        path = choose_default_model(provider)
        require_suited(provider, cards[path], path.name)


def open_card(path: object) -> object:
    with open_session(path, provider="cpu") as session:  # type: ignore[arg-type]
        return session.card


def test_both_precisions_find_the_same_nuclei() -> None:
    rgb, truth = draw_slide(1024, seed=5)
    dices = {}
    labels = {}
    for precision in ("fp32", "int8"):
        with open_session(default_model(precision), provider="cpu") as session:  # type: ignore[arg-type]
            assert session.card.precision == precision
            width, height = session.card.patch_size_pixels
            found = session.run(rgb[None, :height, :width])[0]
            labels[precision] = found[..., 1] >= (session.card.output.threshold or 0.5)
        wanted = truth[:height, :width] == 1
        dices[precision] = 2 * (labels[precision] & wanted).sum() / (labels[precision].sum() + wanted.sum())
    assert np.mean(labels["fp32"] == labels["int8"]) > 0.99
    assert abs(dices["fp32"] - dices["int8"]) < 0.01
