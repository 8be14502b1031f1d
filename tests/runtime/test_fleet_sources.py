from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import OptionError, SlideError
from histoseg.fleet.run import ModelChoice, Order, run_slide
from histoseg.fleet.sources import SlideSource, find_slides, read_list
from histoseg.options import RunOptions


def names(*arguments: Path | str) -> list[str]:
    return [slide.name for slide in find_slides([str(argument) for argument in arguments]).slides]


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path) -> Path:
    """Real slides, damaged ones, and what lies beside slides."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("slides/small.svs", "slides/boxes.tiff", "slides/sm_image.dcm"):
        shutil.copy(shared_data / name, folder)
    for name in ("lfs-pointer.ndpi", "random-bytes.svs", "untiled.tif"):
        shutil.copy(shared_data / "bad_slides" / name, folder)
    (folder / "notes.txt").write_text("no list when it is found in a folder")
    (folder / ".hidden.svs").write_bytes(b"")
    return folder


def test_a_folder_gives_its_slides_and_the_damaged_ones(folder: Path) -> None:
    """What only slides are called is one that is damaged, to be reported; what masks are called, a note."""
    assert names(folder) == ["boxes", "lfs-pointer", "random-bytes", "sm_image", "small"]
    assert [line.partition(":")[0] for line in find_slides([str(folder)]).passed_over] == [
        str(folder / "untiled.tif")
    ]


def test_folders_in_a_folder_are_left_alone_but_for_dicom(folder: Path, shared_data: Path) -> None:
    (folder / "mirax").mkdir()
    (folder / "mirax" / "Data0000.dat").write_bytes(b"pixels")
    (folder / "deeper").mkdir()
    shutil.copy(shared_data / "slides" / "small.svs", folder / "deeper" / "other.svs")
    (folder / "case7").mkdir()
    shutil.copy(shared_data / "slides" / "camelyon-jpeg.dcm", folder / "case7" / "DCM_0.dcm")
    found = {slide.name: slide.path for slide in find_slides([str(folder)]).slides}
    assert found["case7"] == folder / "case7" / "DCM_0.dcm"
    assert not {"other", "Data0000", "mirax"} & set(found)


def test_a_folder_is_one_dicom_slide_only_if_it_holds_no_other(folder: Path, shared_data: Path) -> None:
    mix, two = folder / "mix", folder / "two"
    for inner, slides in ((mix, ("sm_image.dcm", "small.svs")), (two, ("sm_image.dcm", "camelyon-jpeg.dcm"))):
        inner.mkdir()
        for name in slides:
            shutil.copy(shared_data / "slides" / name, inner)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").touch()
    found = find_slides([str(folder)])
    assert not {"mix", "two"} & {slide.name for slide in found.slides}
    assert found.passed_over[:-1] == (
        f"{mix}: 2 slides inside are not looked into; name the folder, or use '{folder}/**/*.dcm'",
        f"{two}: 2 slides inside are not looked into; name the folder, or use '{folder}/**/*.dcm'",
    )
    (mix / "small.svs").unlink()
    (case,) = [slide for slide in find_slides([str(folder)]).slides if slide.name == "mix"]
    assert case.path == mix / "sm_image.dcm"
    (two / "sm_image.dcm").rename(two / "damaged.svs")
    assert "two: 2 slides" in find_slides([str(folder)]).passed_over[-2]


def test_own_results_are_no_slides(open_model: Callable, small_slide: Path, tmp_path: Path) -> None:
    slide = SlideSource(small_slide, "small")
    order = Order(tmp_path / "out", RunOptions(tissue=False))
    assert run_slide(slide, open_model("threshold"), order, lambda event: None).reason is None
    shutil.copy(small_slide, tmp_path / "a.tif")
    assert (tmp_path / "out" / "small" / "labels.tif").is_file()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "**" / "*.tif") == ["a"]
    with pytest.raises(SlideError, match="holds no slide"):
        find_slides([str(tmp_path / "out")])


def make_series(folder: Path, shared_data: Path, files: int) -> Path:
    """Write a DICOM series of several files: copies differ in their instance, as a pyramid's levels do."""
    folder.mkdir()
    data = (shared_data / "slides" / "sm_image.dcm").read_bytes()
    uid = b"1.2.826.0.1.3680043.9.7433.3.12857516184849951143044513877282227"
    assert uid in data
    for number in range(files):
        (folder / f"DCM_{number}.dcm").write_bytes(data.replace(uid, uid[:-1] + str(number).encode()))
    return folder


def test_a_folder_with_a_dicom_series_is_one_slide_of_its_name(shared_data: Path, tmp_path: Path) -> None:
    case = make_series(tmp_path / "case1", shared_data, 3)
    expected = SlideSource(case / "DCM_0.dcm", "case1")
    assert find_slides([str(case)]).slides == (expected,)
    assert find_slides([str(tmp_path)]).slides == (expected,)
    assert find_slides([str(tmp_path / "case*")]).slides == (expected,)
    assert len(names(case / "*.dcm")) == 1


def test_the_results_of_a_series_lie_in_its_folders_name(
    open_model: Callable, shared_data: Path, tmp_path: Path
) -> None:
    make_series(tmp_path / "case1", shared_data, 1)
    (slide,) = find_slides([str(tmp_path)]).slides
    order = Order(tmp_path / "out", RunOptions(mpp=0.5, tissue=False))
    outcome = run_slide(slide, open_model("threshold"), order, lambda event: None)
    assert outcome.reason is None
    assert (tmp_path / "out" / "case1" / "labels.tif").is_file()
    again = run_slide(slide, open_model("threshold"), order, lambda event: None)
    assert again.report["skipped"]


def test_two_series_in_one_folder_are_two_slides(shared_data: Path, tmp_path: Path) -> None:
    case = make_series(tmp_path / "cases", shared_data, 2)
    shutil.copy(shared_data / "slides" / "camelyon-jpeg.dcm", case / "other.dcm")
    assert names(case) == ["DCM_0", "other"]


def test_a_folder_without_slides_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"holds no slide .*\*\*"):
        find_slides([str(tmp_path)])


# lists

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/\r\n\t", exclude_categories=["C", "Z"]), min_size=1
)


@given(rows=st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=1), heading=st.booleans())
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_a_list_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None]], heading: bool, suffix: str
) -> None:
    rows = [(f"s{number}-{slide}.svs", truth) for number, (slide, truth) in enumerate(rows)]
    path = tmp_path_factory.mktemp("lists") / f"slides{suffix}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
        writer.writerows([["slide", "truth"]] * heading)
        writer.writerows([slide, truth or ""] for slide, truth in rows)
    read = [(slide.path, slide.truth) for slide in read_list(path)]
    assert read == [(path.parent / slide, truth and path.parent / truth) for slide, truth in rows]


def test_a_list_is_relative_to_its_folder_and_has_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.txt").write_text("# mine\n\n a b.svs \n/abs/c.svs\tmasks/c.png\n")
    monkeypatch.chdir(tmp_path)
    assert find_slides(["in/list.txt"]).slides == (
        SlideSource(Path("in/a b.svs"), "a b"),
        SlideSource(Path("/abs/c.svs"), "c", Path("in/masks/c.png")),
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a.svs,b.png,c\n", "line 1 has 3 columns"),
        (b"# nothing\n", "lists no slide"),
        (b"\xff\xfe\x00\x01", "cannot be read as a list"),
        (b'a.svs\n"b.svs\n\0', "cannot be read as a list|lists"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(data)
    with pytest.raises(SlideError, match=f"list.csv: .*({said})"):
        raise SlideError(f"{path}: {read_list(path)} lists")


# truths


def test_truths_pair_by_name_and_a_lists_own_stay(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("a.png", "b.geojson.gz", "b.txt", "c.png", "unused.png"):
        (masks / name).touch()
    (tmp_path / "list.csv").write_text("a.svs\nb.svs\nc.svs,mine.png\n")
    found = find_slides([str(tmp_path / "list.csv")], truth=masks).slides
    assert [slide.truth for slide in found] == [
        masks / "a.png",
        masks / "b.geojson.gz",
        tmp_path / "mine.png",
    ]


def test_slides_without_a_truth_or_with_two_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(OptionError, match=r"holds none for b, c, .* and 2 more, expected"):
        find_slides([f"{letter}.svs" for letter in "abcdefgh"], truth=tmp_path)
    (tmp_path / "a.tif").touch()
    with pytest.raises(OptionError, match=r"holds a\.png and a\.tif"):
        find_slides(["a.svs"], truth=tmp_path)


def test_a_truth_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nope: no such file or folder"):
        find_slides(["a.svs", "b.svs"], truth=tmp_path / "nope")


def test_the_first_naming_of_a_slide_stands(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("b.svs,b.png\n")
    found = find_slides([str(tmp_path / "list.csv"), str(tmp_path / "a.svs"), str(tmp_path / "b.svs")]).slides
    assert [(slide.name, slide.truth) for slide in found] == [("b", tmp_path / "b.png"), ("a", None)]


def test_a_model_choice_that_options_do_not_fit_is_refused(models: Path) -> None:
    with pytest.raises(OptionError, match="3 classes"):
        ModelChoice(models / "constant.onnx", "cpu").open(RunOptions(threshold=0.5))


def test_a_result_of_a_live_slide_is_no_slide_either(tmp_path: Path, real_svs: Path) -> None:
    """Its report names no run that could be known again."""
    (tmp_path / "a.svs").symlink_to(real_svs)
    result = tmp_path / "live"
    result.mkdir()
    (result / "report.json").write_text('{"histoseg": "0.1.0", "run": null}')
    (result / "labels.svs").symlink_to(real_svs)
    found = find_slides([str(tmp_path)])
    assert [slide.name for slide in found.slides] == ["a"]
    assert found.passed_over == ()
