from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from histoseg.errors import HistosegError
from histoseg_train.cli import command
from histoseg_train.metadata import require_metadata

MakeFolder = Callable[..., Path]

TINY = shlex.split("--arch=unet-w2-d1 --patch=16 --batch=1 --steps=1 --epochs=1")


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def test_fit_and_evaluate(make_folder: MakeFolder, tmp_path: Path) -> None:
    output = tmp_path / "m.h5"
    classes = "background=#FFFFFF,gland=#0000ff"
    done = run(
        "fit",
        make_folder(3),
        "-o",
        output,
        *TINY,
        "--classes",
        classes,
        "--spacing",
        0.25,
        "--normalize",
        "imagenet",
    )
    assert done.exit_code == 0, done.output
    assert "epoch   1" in done.output
    metadata = require_metadata(output)
    assert metadata.class_names == ("background", "gland")
    assert metadata.class_colors == ("#ffffff", "#0000ff")
    assert metadata.spacing_um_px == 0.25
    assert metadata.normalization == "imagenet"
    scored = run("evaluate", output, tmp_path / "data")
    assert scored.exit_code == 0, scored.output
    assert "of 1 images" in scored.output, "training held one of the three out"
    assert "of 3 images" in run("evaluate", output, tmp_path / "data", "--all").output


@pytest.mark.parametrize("words", [["fit"], ["evaluate"], []])
def test_help(words: list[str]) -> None:
    done = run(*words, "--help")
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_help_is_quick_and_loads_no_keras() -> None:
    code = (
        "import sys\nfrom histoseg_train.cli import command\n"
        "command(['fit', '--help'], standalone_mode=False)\n"
        "sys.exit(str({'keras', 'tensorflow', 'cv2', 'matplotlib'} & set(sys.modules)))"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "x"],
        ["fit", "x", "-o", "m.onnx"],
        ["fit", "x", "-o", "m.keras", "--patch", "30", "--arch", "unet-d2"],
        ["fit", "x", "-o", "m.keras", "--classes", "one=#ffffff"],
        ["fit", "x", "-o", "m.keras", "--classes", "a=white,b=black"],
        ["fit", "x", "-o", "m.keras", "--classes", "a=#ff0000,b=#FF0000"],
        ["fit", "x", "-o", "m.keras", "--arch", "unet-w16-m8"],
        ["fit", "x", "-o", "m.keras", "--normalize", "zscore"],
        ["fit", "x", "-o", "m.keras", "--all", "--schedule", "plateau"],
        ["nonsense"],
    ],
)
def test_usage_errors_exit_2(words: list[str]) -> None:
    assert run(*words).exit_code == 2


def break_nothing(folder: Path) -> Path:
    return folder / "absent"


def break_pair(folder: Path) -> Path:
    (folder / "masks" / "im1.png").unlink()
    return folder


def break_image(folder: Path) -> Path:
    (folder / "images" / "im1.png").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    return folder


def break_size(folder: Path) -> Path:
    cv2.imwrite(str(folder / "masks" / "im1.png"), np.zeros((3, 3), np.uint8))
    return folder


def break_classes(folder: Path) -> Path:
    for mask in (folder / "masks").iterdir():
        cv2.imwrite(str(mask), np.zeros((64, 64), np.uint8))
    return folder


@pytest.mark.parametrize("ruin", [break_nothing, break_pair, break_image, break_size, break_classes])
def test_bad_data_end_in_one_line_and_exit_1(
    make_folder: MakeFolder, tmp_path: Path, ruin: Callable[[Path], Path]
) -> None:
    done = run("fit", ruin(make_folder(3)), "-o", tmp_path / "m.keras", *TINY)
    assert done.exit_code == 1
    assert isinstance(done.exception, HistosegError)
    assert len(str(done.exception).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_all_images_are_trained_on_and_evaluate_says_so(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, model = make_folder(3), tmp_path / "m.keras"
    done = run("fit", folder, "-o", model, "--all", *TINY)
    assert done.exit_code == 0, done.output
    assert "3 images to train on, 0 held out" in done.output
    assert "nothing held out" in done.output
    assert "nan" not in done.output
    assert "trained on all images" in run("evaluate", model, folder).output


def test_an_absent_output_folder_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    done = run("fit", make_folder(3), "-o", tmp_path / "absent" / "m.keras", *TINY)
    assert done.exit_code == 1
    assert "create it first" in str(done.exception)


def test_evaluate_refuses_foreign_models(make_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"rubbish")
    done = run("evaluate", tmp_path / "m.h5", make_folder(2))
    assert done.exit_code == 1
    assert "neither a .keras archive nor an HDF5 file" in str(done.exception)
