"""Learning from trained models, where there are masks and where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.equalize import Equalization
from histoseg.errors import DataError, HistosegError, ModelError
from histoseg_train.cli import command
from histoseg_train.dataset import find_dataset
from histoseg_train.evaluation.tiled import TiledModel, wrap_network
from histoseg_train.fit import Listener, fit_model
from histoseg_train.images import SampleStore
from histoseg_train.job import FitOptions, Job, PatchOptions, TeacherOptions, open_store
from histoseg_train.metadata import KerasMetadata, require_metadata
from histoseg_train.modelfile import save_model
from histoseg_train.patches import PatchBatches
from histoseg_train.resume import describe_run
from histoseg_train.teachers import blend_labels, find_teachers, normalise, predict_turned, teach_store

MakeFolder = Callable[..., Path]
MakeJob = Callable[..., Job]
SEEDS = st.integers(0, 999)


def build_network(*, lopsided: bool = False) -> Any:
    """Return a network that finds what is dark, or, lopsided, what is darker than its right neighbour."""
    image = keras.Input((None, None, 3), name="image")
    layer = keras.layers.Conv2D(2, 3, padding="same", activation="softmax")
    network = keras.Model(image, layer(image))
    kernel = np.zeros((3, 3, 3, 2), np.float32)
    kernel[1, 1, :, 1] = -8
    if lopsided:
        kernel[1, 2, :, 1] = 8
    layer.set_weights([kernel, np.array([0, 0 if lopsided else 16], np.float32)])
    return network


def describe(**changes: Any) -> KerasMetadata:
    known: dict[str, Any] = {
        "architecture": "test",
        "normalization": "unit",
        "class_names": ("background", "nucleus"),
        "class_colors": ("#ffffff", "#00a000"),
        "spacing_um_px": 0.5,
        "patch_size_pixels": (32, 32),
        "training": {"stride_multiple": 1},
    }
    return KerasMetadata(**{**known, **changes})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    save_model(build_network(), path, describe())
    return path


@pytest.fixture(scope="module")
def lopsided() -> TiledModel:
    return wrap_network(build_network(lopsided=True), describe())


@pytest.fixture
def shared_onnx() -> Path:
    """Return the model that the package brings along."""
    import histoseg

    return Path(histoseg.__file__).parent / "models" / "nuclei.onnx"


def write_bare_set(folder: Path) -> Path:
    """Return a data set of a folder whose images come a second time, without masks."""
    path = folder / "set.toml"
    path.write_text(
        """
[[source]]
name = "told"
images = "images"
masks = "masks"
spacing_um_px = 0.5
held_out = ["im0"]

[[source]]
name = "bare"
images = "images"
spacing_um_px = 0.5
"""
    )
    return path


def predict_once(model: TiledModel, rgb: np.ndarray) -> np.ndarray:
    return model.predictor.run(rgb[None])[0]


@settings(deadline=None, max_examples=15)
@given(
    seed=SEEDS, turns=st.integers(0, 3), mirrored=st.booleans(), sides=st.tuples(*[st.integers(3, 40)] * 2)
)
def test_a_turned_image_gets_the_same_soft_labels_turned(
    lopsided: TiledModel, seed: int, turns: int, mirrored: bool, sides: tuple[int, int]
) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8)
    step = -1 if mirrored else 1

    def turn(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels[:, ::step], turns))

    np.testing.assert_allclose(
        predict_turned(lopsided, turn(rgb)), turn(predict_turned(lopsided, rgb)), atol=1e-5
    )


def test_turns_matter_to_one_that_looks_to_one_side(lopsided: TiledModel) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.abs(predict_turned(lopsided, rgb) - predict_once(lopsided, rgb)).max() > 0.1


@settings(max_examples=20)
@given(seed=SEEDS, share=st.floats(0, 1))
def test_masks_and_teachers_share_what_is_learnt(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    said, labels = rng.dirichlet(np.ones(3), (6, 6)).astype(np.float32), rng.integers(0, 3, (6, 6), np.uint8)
    blended = blend_labels(said, labels, share=share)
    np.testing.assert_allclose(blended.sum(axis=-1), 1, atol=1e-5)
    told = np.take_along_axis(blended, labels[..., None].astype(int), -1)[..., 0]
    assert (told >= 1 - share - 1e-6).all()


@settings(max_examples=30)
@given(seed=SEEDS, classes=st.integers(2, 6))
def test_what_sums_to_anything_is_made_to_sum_to_one(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    said = rng.uniform(-0.002, 1.002, (5, 5, classes)).astype(np.float32)
    said[0, 0] = 0
    found = normalise(said)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found[0, 0], 1 / classes)
    np.testing.assert_array_equal(found[1:].argmax(-1), said[1:].argmax(-1))


def open_bare(folder: Path, target: Any) -> SampleStore:
    return open_store(find_dataset(write_bare_set(folder)).training, target)


def test_images_without_masks_get_the_teachers_labels(
    make_folder: MakeFolder, target: Any, teacher: Path
) -> None:
    store = open_bare(make_folder(3), target)
    before = store[len(store) - 1]
    assert before.soft_labels is None
    assert not before.labels.any()
    teach_store(store, find_teachers([teacher]), target)
    told = {item.stem: store[i] for i, item in enumerate(store.items) if item.source == "told"}
    for index, item in enumerate(store.items):
        sample = store[index]
        assert sample.soft_labels is not None
        np.testing.assert_allclose(sample.soft_labels.sum(axis=0, dtype=int), 255, atol=1)
        if item.source == "bare" and item.stem in told:
            # this teacher finds the discs as they were drawn, but for their rims
            np.testing.assert_array_equal(sample.labels, sample.soft_labels[1] > 127)
            assert np.mean(sample.labels != told[item.stem].labels) < 0.03


def test_batches_hold_soft_labels_that_add_up(make_folder: MakeFolder, target: Any, teacher: Path) -> None:
    store = open_bare(make_folder(3), target)
    teach_store(store, find_teachers([teacher, teacher]), target)
    pixels, soft = PatchBatches(store, PatchOptions(size=16, batch=3, steps=2), "unit")[0]
    assert pixels.shape == (3, 16, 16, 3)
    assert soft.shape == (3, 16, 16, 2)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"class_names": ("background", "gland")},
            "--classes background,gland, expected background,nucleus",
        ),
        ({"spacing_um_px": 0.25}, "--spacing 0.25, expected 0.5; give another --teacher"),
        ({"equalization": Equalization(2)}, "--clahe 2 in cells of .* px, expected none"),
    ],
)
def test_teachers_of_something_else_are_refused(
    make_folder: MakeFolder, target: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "other.keras"
    save_model(build_network(), path, describe(**change))
    with pytest.raises(DataError, match=message) as caught:
        teach_store(open_bare(make_folder(3), target), find_teachers([path]), target)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(make_folder: MakeFolder, target: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.keras"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"other\.keras"):
        teach_store(open_bare(make_folder(3), target), find_teachers([path]), target)


def taught(make_job: MakeJob, teacher: Path, **changes: Any) -> Job:
    return make_job(
        patches=PatchOptions(size=16, batch=2, steps=3),
        fit=FitOptions(epochs=2, learning_rate=0.01),
        teachers=find_teachers([teacher], **changes),
    )


def test_the_card_names_the_teachers(make_job: MakeJob, teacher: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    fit_model(taught(make_job, teacher), tmp_path / "m.keras", listener=Listener(tell=lines.append))
    training = require_metadata(tmp_path / "m.keras").training
    assert training["teachers"][0]["file"] == "teacher.keras"
    assert len(training["teachers"][0]["sha256"]) == 64
    assert training["teacher_share"] == 0.5
    assert lines == ["1 teacher looks at 3 images"]


def test_another_teacher_makes_another_run(make_job: MakeJob, teacher: Path, tmp_path: Path) -> None:
    job = taught(make_job, teacher)
    other = tmp_path / "teacher.keras"
    save_model(build_network(lopsided=True), other, describe())
    runs = [
        describe_run(job),
        describe_run(replace(job, teachers=find_teachers([other]))),
        describe_run(replace(job, teachers=find_teachers([teacher], share=0.7))),
        describe_run(replace(job, teachers=TeacherOptions())),
    ]
    assert all(one != another for index, one in enumerate(runs) for another in runs[:index])


TINY = ["--arch=unet-w2-d1", "--patch=16", "--batch=2", "--steps=20", "--epochs=3", "--learning-rate=0.05"]


def test_a_network_learns_from_images_without_masks_alone(
    make_folder: MakeFolder, teacher: Path, tmp_path: Path
) -> None:
    path = write_bare_set(make_folder(4))
    # all that has a mask is held out
    path.write_text(path.read_text().replace('["im0"]', '["*"]'))
    words = ["fit", path, "-o", tmp_path / "m.keras", *TINY, "--teacher", teacher]
    words += ["--classes", "background=#ffffff,nucleus=#00a000", "--no-color-augmentation"]
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert require_metadata(tmp_path / "m.keras").training["dice"]["overall"] > 0.9


def test_images_without_masks_want_a_teacher(make_folder: MakeFolder, tmp_path: Path) -> None:
    path = write_bare_set(make_folder(3))
    done = CliRunner().invoke(command, ["fit", str(path), "-o", str(tmp_path / "m.keras"), *TINY])
    assert done.exit_code == 1
    assert isinstance(done.exception, HistosegError)
    assert "bare has no masks" in str(done.exception)
    assert "--teacher" in str(done.exception)


def test_a_recipe_may_name_a_teacher(make_folder: MakeFolder, teacher: Path, tmp_path: Path) -> None:
    path = write_bare_set(make_folder(3))
    classes = "background=#ffffff,nucleus=#00a000"
    path.write_text(
        f'[fit]\nclasses = "{classes}"\nteacher = "{teacher}"\nteacher-share = 0.3\n' + path.read_text()
    )
    done = CliRunner().invoke(command, ["fit", str(path), "-o", str(tmp_path / "m.keras"), *TINY])
    assert done.exit_code == 0, done.output
    training = require_metadata(tmp_path / "m.keras").training
    assert training["teacher_share"] == 0.3
    assert {source["name"]: source["images_trained"] for source in training["data"]} == {"told": 2, "bare": 3}


def test_a_teacher_is_not_replaced(make_folder: MakeFolder, teacher: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.keras"
    output.write_bytes(teacher.read_bytes())
    words = ["fit", make_folder(3), "-o", output, *TINY, "--teacher", output]
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code == 2
    assert "--output would replace" in done.output
    assert output.read_bytes() == teacher.read_bytes()


def test_an_exported_model_teaches(make_folder: MakeFolder, target: Any, shared_onnx: Path) -> None:
    store = open_bare(make_folder(2), target)
    teach_store(store, find_teachers([shared_onnx]), target)
    soft = store[0].soft_labels
    assert soft is not None
    assert soft.shape == (2, 64, 64)
    np.testing.assert_allclose(soft.sum(axis=0, dtype=int), 255, atol=1)


def test_a_set_without_masks_is_not_scored(make_folder: MakeFolder, teacher: Path) -> None:
    path = write_bare_set(make_folder(3))
    path.write_text(path.read_text().replace('masks = "masks"\n', "").replace('held_out = ["im0"]\n', ""))
    done = CliRunner().invoke(command, ["evaluate", str(teacher), str(path)])
    assert done.exit_code == 1
    assert isinstance(done.exception, DataError)
    assert "no image has a mask" in str(done.exception)


def test_images_without_masks_are_neither_scored_nor_counted(
    make_folder: MakeFolder, teacher: Path, tmp_path: Path
) -> None:
    path = write_bare_set(make_folder(3))
    scored = CliRunner().invoke(command, ["evaluate", str(teacher), str(path), "--all", "--json"])
    assert scored.exit_code == 0, scored.output
    assert '"bare"' not in scored.output
    shown = CliRunner().invoke(command, ["show", str(path), "-o", str(tmp_path / "sheet.png")])
    assert shown.exit_code == 0, shown.output
    assert "bare" not in shown.output
