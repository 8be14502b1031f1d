"""What each precision must hold, and how it is said when it does not."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import OptionError, ParityError
from histoseg_export.gates import LEAST_LABELS, Floor, Gate, Gates, flag_of, relax_gate
from histoseg_export.parity import ClassDice, Parity, require_parity

CLASSES = (
    ClassDice("background", 0.999, 0.98, 0.98, 0.8),
    ClassDice("nucleus", 0.98, 0.795, 0.8, 0.2),
)
GOOD = Parity("keras", "nowhere", 1, (64, 64), 1e-6, 1e-7, 1.0, 0, CLASSES, Gates().pick("fp32"))
SHARES = st.floats(0, 1)


def test_defaults_are_the_promised_ones():
    assert Gates().pick("fp32") == Gate("fp32", 0.9999, max_off_ppm=100.0)
    assert Gates().pick("fp16") == Gate("fp16", 0.999)
    assert Gates().pick("int8") == Gate("int8", 0.99, max_dice_drop=0.01)


def test_labels_only_leaves_probabilities_unjudged():
    parity = replace(GOOD, off_ppm=5e5, max_abs=1.0)
    assert not parity.passed
    lenient = replace(parity, gate=Gates(labels_only=True).pick("fp32"))
    assert lenient.passed
    assert lenient.to_json()["probabilities_judged"] is False


@pytest.mark.parametrize("field", [f.name for f in fields(Gates) if f.type == "float"])
@pytest.mark.parametrize("value", [-0.1, 2e6, float("nan")])
def test_impossible_gates_name_their_flag(field, value):
    with pytest.raises(OptionError, match=f"{flag_of(field)} is .*expected 0 to"):
        Gates(**{field: value})


@given(measured=SHARES, required=SHARES)
def test_labels_decide_on_their_own(measured, required):
    gate = Gates(fp16_labels=required).pick("fp16")
    assert replace(GOOD, gate=gate, label_agreement=measured).passed == (measured >= required)


@given(source=SHARES, found=SHARES, allowed=SHARES)
def test_dice_may_rise_but_not_fall_further_than_allowed(source, found, allowed):
    gate = Gates(int8_dice_drop=allowed).pick("int8")
    nucleus = replace(CLASSES[1], truth_dice=found, source_truth_dice=source)
    assert replace(GOOD, gate=gate, classes=(nucleus,)).passed == (source - found <= allowed)


def test_without_truth_the_labels_of_the_source_stand_for_it():
    bare = tuple(replace(entry, truth_dice=None, source_truth_dice=None) for entry in CLASSES)
    parity = replace(GOOD, classes=bare, gate=Gates().pick("int8"))
    assert parity.judged_against == "labels of keras"
    assert parity.dice_drop == pytest.approx(0.02)
    with pytest.raises(
        ParityError, match=r"Dice falls by 0\.0200 against the labels of keras, allowed 0\.01"
    ):
        require_parity(parity, "model.keras")


def test_a_class_of_a_few_pixels_does_not_decide():
    rare = ClassDice("rare", 0.5, None, None, 1e-5)
    parity = replace(GOOD, classes=(*CLASSES, rare), gate=Gates().pick("int8"))
    assert parity.passed
    assert not replace(parity, classes=(*CLASSES, replace(rare, share=1e-3))).passed


def test_absent_classes_have_no_drop():
    absent = ClassDice("absent", None, None, None, 0.0)
    parity = replace(GOOD, classes=(absent,), gate=Gates().pick("int8"))
    assert parity.dice_drop is None
    assert parity.passed


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"label_agreement": 0.9998}, "--fp32-labels"),
        ({"off_ppm": 101.0}, "--fp32-off-ppm"),
        ({"off_ppm": float("nan")}, "--fp32-off-ppm"),
        ({"label_agreement": float("nan")}, "--fp32-labels"),
        ({"max_abs": float("nan")}, "--fp32-labels"),
        ({"max_abs": float("inf")}, "--fp32-labels"),
    ],
)
def test_a_failure_is_one_line_with_its_flag(change, flag):
    require_parity(GOOD, "model.keras")
    with pytest.raises(ParityError, match=flag) as caught:
        require_parity(replace(GOOD, **change), "model.keras")
    message = str(caught.value)
    assert "model.keras" in message
    assert "no model was written" in message
    assert "\n" not in message


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_says_what_to_do(precision):
    parity = replace(GOOD, label_agreement=0.5, gate=Gates().pick(precision))
    with pytest.raises(ParityError, match=f"the {precision} ONNX file.*; .*(report|use fp32|--calibrate)"):
        require_parity(parity, "model.keras")


def test_document_holds_figures_gate_and_verdict():
    document = replace(GOOD, gate=Gates().pick("int8"), ms_per_tile=12.5).to_json()
    assert document["gate"] == {
        "precision": "int8", "min_labels": 0.99, "max_off_ppm": None, "max_dice_drop": 0.01,
    }  # fmt: skip
    assert document["passed"] is True
    assert document["dice_drop"] == pytest.approx(0.005)
    assert document["dice_judged_against"] == "truth masks"
    assert document["ms_per_tile"] == 12.5
    assert np.isclose(document["classes"][1]["truth_dice"], 0.795)


FLOORS = st.builds(
    Floor, label_agreement=st.floats(0, 1), off_ppm=st.floats(0, 1e6), mean_abs=st.floats(0, 1)
)


@given(floor=FLOORS)
def test_a_floor_never_tightens_a_gate_and_never_opens_it_wide(floor):
    gate = Gates().pick("fp32")
    relaxed = relax_gate(gate, floor)
    assert LEAST_LABELS <= relaxed.min_labels <= gate.min_labels
    assert gate.max_off_ppm <= relaxed.max_off_ppm <= 1e6
    assert relax_gate(Gates(labels_only=True).pick("fp32"), floor).max_off_ppm is None


def test_a_model_that_rounding_leaves_alone_keeps_its_gate():
    gate = Gates().pick("fp32")
    assert relax_gate(gate, Floor(1.0, 0.0, 1e-8)) == gate
