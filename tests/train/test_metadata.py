from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import CardError, ModelError, OutputError
from histoseg.jsonclass import from_json, to_json
from histoseg_train.metadata import KerasMetadata, read_metadata, require_metadata, write_metadata

METADATA = KerasMetadata(
    architecture="unet-w2-d1",
    class_names=("background", "Zellkern µ"),
    class_colors=("#ffffff", "#00a000"),
    spacing_um_px=0.5,
    normalization="unit",
    patch_size_pixels=(64, 32),
    training={"data": [{"name": "tnbc", "licence": "CC BY 4.0"}], "dice": {"overall": 0.8}},
)


@pytest.fixture(params=[".keras", ".h5"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1)])
    path = tmp_path / f"model{request.param}"
    model.save(path)
    return path


def test_round_trip_and_the_file_still_loads(saved: Path) -> None:
    before = keras.saving.load_model(saved).get_weights()
    write_metadata(saved, METADATA)
    assert read_metadata(saved) == METADATA
    for old, new in zip(before, keras.saving.load_model(saved).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_content_decides_not_the_suffix(saved: Path) -> None:
    write_metadata(saved, METADATA)
    for suffix in (".bin", ".h5", ".keras"):
        renamed = saved.rename(saved.with_name(f"renamed{suffix}"))
        assert read_metadata(renamed) == METADATA
        saved = renamed


def test_metadata_are_replaced_not_added(saved: Path) -> None:
    write_metadata(saved, METADATA)
    write_metadata(saved, replace(METADATA, spacing_um_px=0.25))
    found = read_metadata(saved)
    assert found is not None
    assert found.spacing_um_px == 0.25
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_foreign_file_has_none(saved: Path) -> None:
    assert read_metadata(saved) is None
    with pytest.raises(ModelError, match="no histoseg metadata"):
        require_metadata(saved)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_rubbish_is_refused_and_left_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="rubbish"):
        read_metadata(path)
    with pytest.raises(ModelError, match="rubbish"):
        write_metadata(path, METADATA)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_missing_files_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_metadata(tmp_path / "absent.keras")
    with pytest.raises(ModelError, match=r"expected \.keras or \.h5"):
        read_metadata(tmp_path / "model.pt")


def test_wrong_fields_are_named(saved: Path) -> None:
    document = '{"architecture": "x", "surprise": 1}'
    if saved.suffix == ".h5":
        with h5py.File(saved, "r+") as file:
            file.attrs["histoseg"] = document
    else:
        with zipfile.ZipFile(saved, "a") as archive:
            archive.writestr("histoseg.json", document)
    with pytest.raises(ModelError, match="unknown field 'surprise'"):
        read_metadata(saved)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"class_names": ("one",)}, "class_names"),
        ({"class_colors": ("#ffffff",)}, "class_colors"),
        ({"class_colors": ("#ffffff", "green")}, "class_colors"),
        ({"spacing_um_px": 0.0}, "spacing_um_px"),
        ({"patch_size_pixels": (0, 4)}, "patch_size_pixels"),
    ],
)
def test_impossible_values_are_refused(change: dict, field: str) -> None:
    with pytest.raises(CardError, match=field):
        replace(METADATA, **change)


def test_too_much_for_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save(path)
    with pytest.raises(OutputError, match=r"save the model as \.keras"):
        write_metadata(path, replace(METADATA, training={"names": "x" * 70_000}))
    assert read_metadata(path) is None


@given(spacing=st.floats(0.01, 100), width=st.integers(1, 4096), name=st.text(min_size=1))
def test_json_round_trip(spacing: float, width: int, name: str) -> None:
    metadata = replace(METADATA, spacing_um_px=spacing, patch_size_pixels=(width, 1), architecture=name)
    assert from_json(KerasMetadata, to_json(metadata)) == metadata


def test_importing_it_loads_no_keras() -> None:
    code = "import sys, histoseg_train.metadata; print({'keras', 'tensorflow', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
