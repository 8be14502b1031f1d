from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from histoseg.errors import DataError
from histoseg_train.augment import AugmentOptions, draw_patch
from histoseg_train.cli import command
from histoseg_train.dataset import Dataset, find_dataset, list_items
from histoseg_train.images import count_pixels
from histoseg_train.job import Target, open_store
from histoseg_train.recipes import list_recipes

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"


@pytest.fixture(scope="module")
def nuclei(shared_data: Path) -> Dataset:
    return find_dataset(RECIPES / "nuclei.toml", root=shared_data)


def test_every_image_that_may_be_used_is_used_once(nuclei: Dataset, shared_data: Path) -> None:
    listed = (shared_data / "dsb2018" / "brightfield.txt").read_text().split()
    found = sorted(item.image.name for item in nuclei.items if item.source.startswith("dsb2018"))
    assert found == sorted(listed)
    assert sum(item.source == "tnbc" for item in nuclei.items) == 33
    assert sum(item.source == "nucls" for item in nuclei.items) == 10


def test_only_sources_whose_weights_may_be_shipped(nuclei: Dataset) -> None:
    assert {source["licence"] for source in nuclei.sources} == {"CC0", "CC BY 4.0"}
    assert not any("monuseg" in str(item.image) for item in nuclei.items)


def test_patients_are_held_out_whole(nuclei: Dataset) -> None:
    def patients(items: tuple) -> set[str]:
        return {item.stem[:2] for item in items if item.source == "tnbc"}

    assert len(patients(nuclei.held_out)) == 2
    assert not patients(nuclei.held_out) & patients(nuclei.training)
    assert {item.source for item in nuclei.held_out} == {item.source for item in nuclei.items}


def test_real_images_are_read_and_cut(nuclei: Dataset, target: Target) -> None:
    store = open_store(nuclei.items, target)
    pixels = count_pixels(store)
    assert 0.1 < pixels[1] / pixels.sum() < 0.3
    assert pixels[2:].sum() == 0
    for index in range(0, len(store), 20):
        patch = draw_patch(
            store[index], np.random.default_rng(0), size=64, foreground=1, options=AugmentOptions()
        )
        assert patch.rgb.shape == (64, 64, 3)


def test_monuseg_is_for_evaluation(shared_data: Path) -> None:
    dataset = list_items(RECIPES / "monuseg.toml", root=shared_data)
    assert len(dataset.held_out) == 30
    assert not dataset.training


def test_recipes_name_no_machine(shared_data: Path) -> None:
    for recipe in RECIPES.glob("*.toml"):
        assert str(shared_data.parent.parent) not in recipe.read_text()


SHIPPED = {
    "monuseg-unet": "CC BY-NC-SA 4.0",
    "monuseg-segnet": "CC BY-NC-SA 4.0",
    "monuseg-deeplabv3plus": "CC BY-NC-SA 4.0",
    "nucls": "CC0",
    "dsb2018": "CC0",
    "ocdc": "CC BY 4.0",
    "nuclei": "",
    "monuseg": "CC BY-NC-SA 4.0",
}


def test_every_recipe_is_known() -> None:
    assert set(list_recipes()) == set(SHIPPED)


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() - {"monuseg"}))
def test_the_data_of_a_recipe_are_there_and_no_image_is_on_both_sides(shared_data: Path, name: str) -> None:
    dataset = find_dataset(Path(name), root=shared_data)
    trained, held_out = ({item.image for item in items} for items in (dataset.training, dataset.held_out))
    assert trained
    assert held_out
    assert not trained & held_out
    if SHIPPED[name]:
        assert {source["licence"] for source in dataset.sources} == {SHIPPED[name]}


def test_three_architectures_hold_out_the_same_patients(shared_data: Path) -> None:
    names = ("monuseg-unet", "monuseg-segnet", "monuseg-deeplabv3plus")
    folds = [find_dataset(Path(name), root=shared_data).held_out for name in names]
    patients = [{item.stem[:12] for item in fold} for fold in folds]
    assert [len(fold) for fold in folds] == [6, 6, 6]
    assert patients[0] == patients[1] == patients[2]
    trained = find_dataset(Path(names[0]), root=shared_data).training
    assert not patients[0] & {item.stem[:12] for item in trained}


def test_both_kinds_of_the_bowl_are_told_apart(shared_data: Path) -> None:
    items = find_dataset(Path("dsb2018"), root=shared_data).items
    kinds = {kind: {item.stem for item in items if item.source == kind} for kind in BOWL}
    assert {kind: len(stems) for kind, stems in kinds.items()} == BOWL
    assert not kinds["bright-field"] & kinds["fluorescence"]


BOWL = {"bright-field": 95, "fluorescence": 495}


def run_fit(monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[str, Any]:
    """Return the job that a command line would have trained."""
    from histoseg_train.commands import fit as room

    seen: dict[str, Any] = {}

    def remember(data: Path, values: dict[str, Any], patches: Any) -> None:
        seen.update(values, data=data, patches=patches)
        raise DataError("that is all")

    monkeypatch.setattr(room, "_prepare", remember)
    done = CliRunner().invoke(command, ["fit", *map(str, words)])
    assert isinstance(done.exception, DataError), done.output
    return seen


def test_options_of_a_recipe_are_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "m.keras")
    plain = run_fit(monkeypatch, "--recipe", "monuseg-segnet", *output)
    assert plain["arch"].name == "segnet-w16-d4"
    assert plain["data"] == RECIPES / "monuseg-segnet.toml"
    assert plain["spacing_um_px"] == 0.25
    other = run_fit(monkeypatch, "--recipe", "monuseg-segnet", "--spacing", 1, *output)
    assert (other["spacing_um_px"], other["arch"]) == (1, plain["arch"])


def test_a_recipe_goes_over_what_the_data_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe, said = tmp_path / "mine.toml", {"class_names": ["a", "b"], "class_colors": ["#000000", "#ffffff"]}
    recipe.write_text("[fit]\nspacing = 2\nturns = false\nscale = 1\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"spacing_um_px": 3.0, **said}))
    for words in ((tmp_path / "data", "--recipe", recipe), ("--recipe", recipe, tmp_path / "data")):
        seen = run_fit(monkeypatch, *words, "-o", tmp_path / "m.keras")
        assert seen["spacing_um_px"] == 2
        assert seen["classes"][0] == ("a", "b")
        assert seen["data"] == tmp_path / "data"
        assert not seen["patches"].augment.turns
    assert run_fit(monkeypatch, recipe, "-o", tmp_path / "m.keras")["spacing_um_px"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fit]\nwidth = 3", "fit has 'width'"),
        ("[fit]\noutput = 'x.keras'", "fit has 'output'"),
        ("fit = 3", "expected a table"),
        ("[fit", "not TOML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    done = CliRunner().invoke(command, ["fit", "--recipe", str(tmp_path / "mine.toml"), "-o", "m.keras"])
    assert words in str(done.exception)
    unknown = CliRunner().invoke(command, ["fit", "--recipe", "nosuch", "-o", "m.keras"])
    assert "monuseg-unet" in str(unknown.exception)


def test_fit_needs_data_or_a_recipe() -> None:
    assert CliRunner().invoke(command, ["fit", "-o", "m.keras"]).exit_code == 2
