from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result

import histoseg
from histoseg.errors import HistosegError
from histoseg_train.architectures import UnetOptions, build_unet
from histoseg_train.cli import command
from histoseg_train.metadata import KerasMetadata
from histoseg_train.modelfile import save_model

MakeFolder = Callable[..., Path]

FILES = {"evaluation.json", "images.csv", "classes.csv", "thresholds.csv", "sheet.png"}
SHIPPED = Path(histoseg.__file__).parent / "models" / "nuclei.onnx"


def run(*words: object) -> Result:
    return CliRunner().invoke(command, ["evaluate", *map(str, words)])


def fail(*words: object) -> str:
    """Return the one line that a person gets."""
    done = run(*words)
    assert done.exit_code == 1
    assert isinstance(done.exception, HistosegError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def save(path: Path, *names: str) -> Path:
    metadata = KerasMetadata(
        "unet-w2-d1", names, ("#ffffff", "#00a000", "#0000ff")[: len(names)], 0.5, "unit", (32, 32),
        training={"stride_multiple": 2, "loss": {"ce": 1.0, "dice": 1.0}},
    )  # fmt: skip
    save_model(build_unet((None, None, 3), len(names), options=UnetOptions(width=2, depth=1)), path, metadata)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "m.keras", "background", "nucleus")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def agree(cell: str, value: object) -> bool:
    return cell == "" if value is None else cell == str(value)


def test_files_and_table_tell_the_same(make_folder: MakeFolder, model: Path, tmp_path: Path) -> None:
    done = run(model, make_folder(3), "-o", tmp_path / "out", "--sheet", 2)
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert done.output.startswith(f"{model}: Dice {document['dice']:.4f} of 3 images  data ")
    images = read_csv(tmp_path / "out" / "images.csv")
    assert [row["image"] for row in images] == ["im0", "im1", "im2"]
    for row, image in zip(images, document["images"], strict=True):
        assert all(agree(row[key], image[key]) for key in ("dice", "loss", "training_loss", "accuracy"))
        assert all(
            agree(row[f"{key}_{figures['class']}"], figures[key])
            for figures in image["classes"]
            for key in ("dice", "iou", "precision", "recall")
        )
    classes = read_csv(tmp_path / "out" / "classes.csv")
    groups = [document["pooled"], *document["sources"]]
    for row, figures in zip(classes, [f for group in groups for f in group["classes"]], strict=True):
        assert all(agree(row[key], value) for key, value in figures.items())
    for row, threshold in zip(
        read_csv(tmp_path / "out" / "thresholds.csv"), document["thresholds"], strict=True
    ):
        assert all(agree(row[key], value) for key, value in threshold.items())
    sheet = cv2.imread(str(tmp_path / "out" / "sheet.png"))
    assert sheet.shape[0] == 2 * 22 + 2 * (22 + 520)
    assert document["model"]["file"] == "m.keras"
    assert document["pooled"]["training_loss"] > 0


def test_json_alone_on_stdout(make_folder: MakeFolder, model: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    folder = make_folder(2)
    document = json.loads(run(model, folder, "--json").stdout)
    assert document["data"] == {"path": str(folder), "images": 2, "all_images": False}
    assert set(tmp_path.iterdir()) - before == {folder}, "nothing is written without -o"


def test_held_out_images_are_scored_unless_all_are_wanted(make_folder: MakeFolder, model: Path) -> None:
    folder = make_folder(3)
    make_folder(2, name="other", seed=5).rename(folder / "val")
    assert "of 2 images" in run(model, folder).output
    assert "of 5 images" in run(model, folder, "--all").output


def test_an_older_result_is_replaced_and_strangers_are_kept(
    make_folder: MakeFolder, model: Path, tmp_path: Path
) -> None:
    folder, out = make_folder(2), tmp_path / "out"
    assert run(model, folder, "-o", out).exit_code == 0
    assert run(model, folder, "-o", out, "--sheet", 0).exit_code == 0
    assert {path.name for path in out.iterdir()} == FILES - {"sheet.png"}
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in fail(model, folder, "-o", out)
    assert "holds no histoseg result" in fail(model, folder, "-o", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["images", "masks"]


def test_a_failure_leaves_no_folder(make_folder: MakeFolder, model: Path, tmp_path: Path) -> None:
    folder = make_folder(2)
    (folder / "images" / "im1.png").write_bytes(b"rubbish")
    assert "im1.png" in fail(model, folder, "-o", tmp_path / "out")
    assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())


def test_three_classes_have_no_thresholds(make_folder: MakeFolder, tmp_path: Path) -> None:
    path, folder = save(tmp_path / "m.h5", "background", "a", "b"), make_folder(2)
    for mask in (folder / "masks").iterdir():
        labels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) // 255
        labels[:20] *= 2
        cv2.imwrite(str(mask), labels)
    done = run(path, folder, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"thresholds.csv"}
    assert "threshold" not in done.output
    assert "3 classes, expected two" in fail(path, folder, "--threshold", 0.5)


def test_a_tile_of_the_wrong_size_is_refused(make_folder: MakeFolder, model: Path) -> None:
    assert "expected a multiple of 2" in fail(model, make_folder(1), "--tile", 31)
    assert run(model, make_folder(1), "--threshold", 1).exit_code == 2


def test_the_shipped_onnx_file_on_a_real_image(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = tmp_path / "tnbc.toml"
    source.write_text(
        '[[source]]\nname = "tnbc"\nimages = "tnbc/images"\nmasks = "tnbc/masks"\n'
        'spacing_um_px = 0.5\nstems = ["02_2", "06_1"]\n'
    )
    words = (SHIPPED, source, "--root", shared_data, "--provider", "cpu")
    document = json.loads(run(*words, "--json").stdout)
    assert document["model"]["runner"] == "cpu"
    assert document["model"]["tile_pixels"] == [1024, 1024]
    assert 0.7 < document["dice"] < 0.9
    assert "fixed tile of its own" in fail(*words, "--tile", 512)
