from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

import histoseg
from histoseg.demo import write_pyramid
from histoseg.errors import (
    CancelledError,
    ModelError,
    OptionError,
    OutputError,
    SlideError,
    SpacingError,
    TruthError,
)
from histoseg.job import segment_slide
from histoseg.options import RunOptions
from histoseg.progress import RunProgress
from histoseg.session import open_session
from histoseg.slide import ArraySlide, FileSlide

ALL = RunOptions(tissue=False)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def read_labels(folder: Path) -> np.ndarray:
    return tifffile.imread(folder / "labels.tif")


def expect_labels(slide_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of threshold.onnx from OpenSlide's pixels, and where rounding cannot matter."""
    with openslide.OpenSlide(str(slide_path)) as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    mean = rgb.mean(axis=-1) / 255
    return (mean < 0.6).astype(np.uint8), np.abs(mean - 0.6) > 1e-4


@pytest.mark.parametrize("blend", [None, "crop", "gaussian", "constant"])
def test_labels_are_the_models_over_the_whole_slide(
    open_model, small_slide: Path, tmp_path: Path, blend: str | None
) -> None:
    segment_slide(small_slide, open_model("threshold"), tmp_path, RunOptions(tissue=False, blend=blend))
    labels, (expected, certain) = read_labels(tmp_path / "small"), expect_labels(small_slide)
    assert labels.shape == (620, 700)
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(labels[certain], expected[certain])


def test_a_real_slide_end_to_end(open_model, real_svs: Path, tmp_path: Path) -> None:
    report = segment_slide(real_svs, open_model("threshold"), tmp_path)
    folder = tmp_path / "cmu-1-small-region"
    labels, (expected, certain) = read_labels(folder), expect_labels(real_svs)
    assert labels.shape == (2967, 2220)
    ran = labels == expected
    # what was skipped as glass is background; nothing else may differ
    assert (labels[~ran & certain] == 0).all()
    assert ran.mean() > 0.99
    with openslide.OpenSlide(str(folder / "labels.tif")) as slide:
        assert slide.dimensions == (2220, 2967)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.499, rel=1e-3)
    assert report["tiles"]["run"] <= report["tiles"]["total"]
    assert 0 < report["tissue"]["coverage"] <= 1


def test_the_report_has_what_its_readers_look_for(open_model, small_slide: Path, tmp_path: Path) -> None:
    truth = small_slide.with_name("truth.png")
    returned = segment_slide(small_slide, open_model("threshold"), tmp_path, truth=truth)
    folder = tmp_path / "small"
    assert sorted(path.name for path in folder.iterdir()) == [
        "labels.tif",
        "objects.geojson.gz",
        "overlay.png",
        "report.html",
        "report.json",
        "tissue.png",
    ]
    report = json.loads((folder / "report.json").read_text())
    assert report == returned
    assert report["histoseg"] == histoseg.__version__
    assert report["model"]["name"] == "threshold.onnx"
    assert report["model"]["sha256"] == open_model("threshold").sha256
    assert report["provider"] == "cpu"
    assert report["slide"]["path"] == str(small_slide)
    assert report["slide"]["size_px"] == [700, 620]
    assert report["spacing_um_px"] == pytest.approx(0.5)
    assert 0 < report["tiles"]["run"] <= report["tiles"]["total"]
    seconds = report["seconds"]
    assert set(seconds) == {"read", "infer", "blend", "write", "total"}
    assert all(value >= 0 for value in seconds.values())
    labels = read_labels(folder)
    for index, entry in enumerate(report["classes"]):
        assert set(entry) == {"name", "pixels", "area_mm2"}
        assert entry["pixels"] == (labels == index).sum()
        assert entry["area_mm2"] == pytest.approx(entry["pixels"] * 0.25e-6)
    assert [entry["name"] for entry in report["classes"]] == ["background", "nucleus"]


def test_the_score_is_that_of_the_labels_written(open_model, small_slide: Path, tmp_path: Path) -> None:
    path = small_slide.with_name("truth.png")
    score = segment_slide(small_slide, open_model("threshold"), tmp_path, truth=path)["score"]
    labels, truth = read_labels(tmp_path / "small"), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 127
    confusion = [[int(((truth == t) & (labels == p)).sum()) for p in (0, 1)] for t in (0, 1)]
    assert score["confusion"] == confusion
    assert score["accuracy"] == pytest.approx((truth == labels).mean())
    for index, entry in enumerate(score["classes"]):
        assert set(entry) == {"name", "dice", "iou", "precision", "recall", "accuracy"}
        hit = confusion[index][index]
        size = sum(confusion[index]) + confusion[0][index] + confusion[1][index]
        assert entry["dice"] == pytest.approx(2 * hit / size)
    assert score["mean_dice"] == pytest.approx(np.mean([entry["dice"] for entry in score["classes"]]))


def test_without_a_truth_there_is_no_score(open_model, small_slide: Path, tmp_path: Path) -> None:
    assert segment_slide(small_slide, open_model("threshold"), tmp_path)["score"] is None


def test_labels_written_before_are_a_perfect_truth(open_model, small_slide: Path, tmp_path: Path) -> None:
    """labels.tif holds class indices under a palette: as a truth it is what it is, not its colours."""
    session = open_model("threshold")
    segment_slide(small_slide, session, tmp_path / "first", ALL)
    truth = tmp_path / "first" / "small" / "labels.tif"
    score = segment_slide(small_slide, session, tmp_path / "second", ALL, truth=truth)["score"]
    assert score["mean_dice"] == 1
    assert score["accuracy"] == 1


@pytest.mark.parametrize(
    "options",
    [
        ALL,
        RunOptions(tissue=False, batch_size=7, readers=1),
        RunOptions(tissue=False, batch_size=1, readers=6),
    ],
)
def test_a_rerun_gives_the_same_bytes(
    open_model, small_slide: Path, tmp_path: Path, options: RunOptions
) -> None:
    session = open_model("unet")
    segment_slide(small_slide, session, tmp_path, ALL)
    first = (tmp_path / "small" / "labels.tif").read_bytes()
    assert "skipped" not in segment_slide(small_slide, session, tmp_path, options, overwrite=True)
    assert (tmp_path / "small" / "labels.tif").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("blend", ["cosine", "crop"])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_panels_change_no_byte(
    monkeypatch: pytest.MonkeyPatch, open_model, small_slide: Path, tmp_path: Path, columns: int, blend: str
) -> None:
    session, truth = open_model("unet"), small_slide.with_name("truth.png")
    options = RunOptions(tissue=False, blend=blend)
    whole = segment_slide(small_slide, session, tmp_path / "whole", options, truth=truth)
    monkeypatch.setattr("histoseg.planning.fit_panels", lambda *_, **__: columns)
    options = dataclasses.replace(options, max_memory=1 << 30)
    cut = segment_slide(small_slide, session, tmp_path / "cut", options, truth=truth)
    assert (whole["tiles"]["panels"], cut["tiles"]["panels"]) == (1, -(-whole["tiles"]["columns"] // columns))
    for name in ("labels.tif", "overlay.png"):
        assert (tmp_path / "cut/small" / name).read_bytes() == (tmp_path / "whole/small" / name).read_bytes()
    assert cut["score"] == whole["score"]
    assert cut["classes"] == whole["classes"]


def test_memory_that_is_enough_cuts_nothing_and_too_little_is_refused(
    open_model, small_slide: Path, tmp_path: Path
) -> None:
    report = segment_slide(small_slide, open_model("conv"), tmp_path, RunOptions(max_memory=64 << 30))
    assert report["tiles"]["panels"] == 1
    before = tree(tmp_path)
    with pytest.raises(OptionError, match="--max-memory is 1 MiB, expected at least"):
        segment_slide(
            small_slide, open_model("conv"), tmp_path, RunOptions(max_memory=1 << 20), overwrite=True
        )
    assert tree(tmp_path) == before


def test_a_cancelled_run_leaves_nothing_behind(open_model, small_slide: Path, tmp_path: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(CancelledError, match=r"cancelled after \d+ of \d+ tiles"):
        segment_slide(
            small_slide, open_model("conv"), tmp_path, ALL, cancel=cancel, on_progress=lambda _: cancel.set()
        )
    assert tree(tmp_path) == {}


class CancellingSlide(ArraySlide):
    """A slide of one colour that sets an event when it is read for the `after`th time."""

    def __init__(self, rgb: np.ndarray, cancel: threading.Event, after: int) -> None:
        super().__init__(rgb, 0.5, "field")
        self.cancel, self.after, self.reads = cancel, after, 0

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        self.reads += 1
        if self.reads == self.after:
            self.cancel.set()
        return super().read_level(level, x, y, width, height)


@pytest.mark.parametrize("after", [1, 2, 7, 8, 9, 14])
def test_a_run_without_a_tile_is_cancelled_too(
    open_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """On bare glass, while tissue is looked for (8 blocks), between, and while the overlay is drawn (8)."""
    monkeypatch.setattr("histoseg.overview.OVERVIEW_BLOCK_PX", 100)
    cancel = threading.Event()
    slide = CancellingSlide(np.full((200, 400, 3), 245, np.uint8), cancel, after)
    with pytest.raises(CancelledError, match="cancelled"):
        segment_slide(slide, open_model("conv"), tmp_path, cancel=cancel)
    assert slide.reads == after
    assert tree(tmp_path) == {}


def test_a_run_cancelled_after_its_last_tile_draws_no_overlay(open_model, tmp_path: Path) -> None:
    cancel = threading.Event()
    slide = CancellingSlide(np.full((100, 100, 3), 90, np.uint8), threading.Event(), 0)
    reads = []

    def note(progress: RunProgress) -> None:
        if progress.done == progress.known:
            reads.append(slide.reads)
            cancel.set()

    with pytest.raises(CancelledError, match="cancelled"):
        segment_slide(slide, open_model("conv"), tmp_path, ALL, cancel=cancel, on_progress=note)
    assert reads == [slide.reads]
    assert tree(tmp_path) == {}


def test_a_model_of_fixed_batch_refuses_another(open_model, small_slide: Path, tmp_path: Path) -> None:
    session = open_model("nchw_float_logits")
    with pytest.raises(OptionError, match="--batch is 4, expected 1"):
        segment_slide(small_slide, session, tmp_path, RunOptions(tissue=False, batch_size=4))
    report = segment_slide(small_slide, session, tmp_path, RunOptions(tissue=False, batch_size=1))
    assert report["tiles"]["batch_size"] == 1


def test_a_threshold_decides(open_model, small_slide: Path, tmp_path: Path) -> None:
    pixels = []
    for threshold in (0.01, 0.5, 0.99):
        options = RunOptions(tissue=False, threshold=threshold)
        report = segment_slide(small_slide, open_model("threshold"), tmp_path, options)
        pixels.append(report["classes"][1]["pixels"])
    assert pixels[0] > pixels[1] > pixels[2] > 0


def test_progress_reaches_the_total(open_model, small_slide: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = segment_slide(
        small_slide,
        open_model("threshold"),
        tmp_path,
        on_progress=lambda progress: seen.append((progress.done, progress.known)),
    )
    assert seen[-1] == (report["tiles"]["run"], report["tiles"]["run"])


def test_glass_alone_runs_no_tile_and_is_all_background(open_model, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "glass.tif", np.full((400, 500, 3), 245, np.uint8), 0.5)
    report = segment_slide(tmp_path / "glass.tif", open_model("constant"), tmp_path / "out")
    assert report["tiles"]["run"] == 0
    assert report["tissue"]["coverage"] == 0
    assert not read_labels(tmp_path / "out" / "glass").any()


@pytest.mark.parametrize("name", ["small_la.tiff", "small.svs", "sm_image.dcm"])
def test_slides_smaller_than_a_tile_run(open_model, shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "slides" / name
    options = RunOptions(mpp=0.5, tissue=False)
    report = segment_slide(path, open_model("unet"), tmp_path, options)
    width, height = report["size_px"]
    assert read_labels(tmp_path / path.stem).shape == (height, width)
    assert sum(entry["pixels"] for entry in report["classes"]) == width * height


def test_a_real_pyramid_runs_from_a_lower_level(open_model, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides" / "yb10kx5k.zstd.tiff"
    report = segment_slide(path, open_model("threshold"), tmp_path, RunOptions(mpp=0.0625, tissue=False))
    assert report["slide"]["level"] == 3
    assert report["size_px"] == [1250, 625]


# whole or not at all


def test_the_folder_appears_only_when_all_is_in_it(open_model, small_slide: Path, tmp_path: Path) -> None:
    seen = []
    segment_slide(
        small_slide,
        open_model("threshold"),
        tmp_path / "a" / "b",
        on_progress=lambda _: seen.append((tmp_path / "a" / "b" / "small").exists()),
    )
    assert seen
    assert not any(seen)
    assert len(list((tmp_path / "a" / "b" / "small").iterdir())) == 6


class StopError(Exception):
    pass


def stop(progress: RunProgress) -> None:
    raise StopError


def test_a_run_that_fails_leaves_nothing_behind(open_model, small_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        segment_slide(small_slide, open_model("threshold"), tmp_path / "new" / "deep", on_progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(StopError):
        segment_slide(small_slide, open_model("threshold"), tmp_path / "mine", on_progress=stop)
    assert tree(tmp_path) == {"mine": None}
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("histoseg-")]


def test_a_rerun_that_fails_keeps_the_results_there_were(
    open_model, small_slide: Path, tmp_path: Path
) -> None:
    segment_slide(small_slide, open_model("threshold"), tmp_path)
    before = tree(tmp_path)
    with pytest.raises(StopError):
        segment_slide(small_slide, open_model("threshold"), tmp_path, overwrite=True, on_progress=stop)
    assert tree(tmp_path) == before


def tear(path: Path) -> None:
    """Overwrite the last JPEG tiles of level 0."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))[-2:]
    data = bytearray(path.read_bytes())
    for offset, length in places:
        data[offset : offset + length] = bytes(length)
    path.write_bytes(data)


def test_a_slide_damaged_inside_is_refused_and_leaves_no_result(
    open_model, small_slide: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.tif"
    torn.write_bytes(small_slide.read_bytes())
    tear(torn)
    with pytest.raises(SlideError, match=r"torn\.tif.*damaged"):
        segment_slide(torn, open_model("threshold"), tmp_path / "out", ALL)
    # what was read stands: a network that failed comes back
    assert sorted(tree(tmp_path / "out")) == [".torn.part", ".torn.part/.journal"]


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file"])
def test_what_is_not_ours_is_refused_untouched(
    open_model, small_slide: Path, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "small"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        if kind == "folder":
            (place / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="small"):
        segment_slide(small_slide, open_model("threshold"), tmp_path)
    assert tree(tmp_path) == before


def test_an_out_that_is_a_file_is_refused(open_model, small_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        segment_slide(small_slide, open_model("threshold"), tmp_path / "file")
    assert tree(tmp_path) == {"file": b"mine"}


def test_remains_of_a_killed_run_do_not_disturb(open_model, small_slide: Path, tmp_path: Path) -> None:
    (tmp_path / ".small.part").mkdir()
    (tmp_path / ".small.part" / "labels.tif").write_text("half")
    segment_slide(small_slide, open_model("threshold"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_bad_input_is_refused_before_anything_is_written(
    open_model, small_slide: Path, shared_data: Path, tmp_path: Path
) -> None:
    session, out = open_model("threshold"), tmp_path / "out"
    wrong = tmp_path / "wrong.png"
    assert cv2.imwrite(str(wrong), np.zeros((10, 70), np.uint8))
    with pytest.raises(TruthError):
        segment_slide(small_slide, session, out, truth=wrong)
    with pytest.raises(SpacingError):
        segment_slide(shared_data / "slides" / "camelyon-jpeg.dcm", session, out)
    with pytest.raises(SlideError):
        segment_slide(shared_data / "bad_slides" / "untiled.tif", session, out)
    assert not out.exists()


def test_a_truth_with_a_strange_value_stops_the_run_and_leaves_nothing(
    open_model, small_slide: Path, tmp_path: Path
) -> None:
    truth = cv2.imread(str(small_slide.with_name("truth.png")), cv2.IMREAD_UNCHANGED)
    truth[500, 500] = 77
    assert cv2.imwrite(str(tmp_path / "truth.png"), truth)
    with pytest.raises(TruthError, match="77"):
        segment_slide(small_slide, open_model("threshold"), tmp_path / "out", truth=tmp_path / "truth.png")
    assert not (tmp_path / "out").exists()


def test_public_names_do_the_same(models: Path, small_slide: Path, tmp_path: Path) -> None:
    with histoseg.Segmenter(str(models / "threshold.onnx"), options=histoseg.RunOptions()) as segmenter:
        report = segmenter.segment(str(small_slide), str(tmp_path))
    assert (tmp_path / "small" / "report.json").is_file()
    assert report["classes"][1]["pixels"] > 0


def test_an_array_is_a_slide(tmp_path: Path, open_model) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    report = segment_slide(ArraySlide(rgb, 0.5, "field"), open_model("threshold"), tmp_path, ALL)
    assert report["slide"]["path"] == "field"
    assert tifffile.imread(tmp_path / "field" / "labels.tif").shape == (90, 130)


def test_a_result_moved_aside_by_a_killed_run_is_not_lost(tmp_path: Path, open_model) -> None:
    """Killed between the two renames, a run leaves only `.field.old`; a failing rerun must keep it."""
    slide = ArraySlide(np.full((64, 64, 3), 90, np.uint8), 0.5, "field")
    segment_slide(slide, open_model("threshold"), tmp_path, ALL)
    before = (tmp_path / "field" / "labels.tif").read_bytes()
    (tmp_path / "field").rename(tmp_path / ".field.old")
    with pytest.raises(TruthError):
        segment_slide(slide, open_model("threshold"), tmp_path, ALL, truth=tmp_path / "missing.png")
    slide.read_level = lambda *region: (_ for _ in ()).throw(SlideError("torn"))  # type: ignore[method-assign]
    with pytest.raises(SlideError, match="torn"):
        segment_slide(slide, open_model("threshold"), tmp_path, ALL)
    assert (tmp_path / "field" / "labels.tif").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RunOptions(overlap_px=64), "--overlap"),
        (RunOptions(threshold=0.4), "3 classes"),
        (RunOptions(mpp=float("nan")), "--mpp"),
        (RunOptions(mpp=0.0), "--mpp"),
        (RunOptions(mpp=float("inf"), allow_coarse=True), "--mpp"),
        (RunOptions(mpp=1e-300), "--mpp is 1e-300, expected 0.001 to 1000"),
        (RunOptions(blend="hann"), "--blend is 'hann', expected one of"),  # type: ignore[arg-type]
        (RunOptions(batch_size=-1), "--batch is -1, expected 1 or more"),
        (RunOptions(readers=0), "readers is 0, expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(
    open_model, small_slide: Path, tmp_path: Path, options: RunOptions, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        segment_slide(small_slide, open_model("constant"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "..", "../elsewhere", "a/b", "a\\b"])
def test_a_name_that_leads_elsewhere_is_refused(open_model, tmp_path: Path, name: str) -> None:
    slide = ArraySlide(np.zeros((64, 64, 3), np.uint8), 0.5, name)
    with pytest.raises(SlideError, match="name"):
        segment_slide(slide, open_model("threshold"), tmp_path / "out", ALL)
    assert tree(tmp_path) == {}


def test_the_report_says_which_options_decided(open_model, small_slide: Path, tmp_path: Path) -> None:
    options = RunOptions(tissue=False, mpp=0.25, threshold=0.4)
    report = segment_slide(small_slide, open_model("threshold"), tmp_path, options)
    assert report["options"]["mpp"] == 0.25
    assert report["options"]["threshold"] == 0.4
    assert report["options"]["truth"] is None


def test_no_reader_is_inside_the_slide_when_it_is_closed(
    open_model, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truth that fails in mid-run once closed the file under the readers, and OpenSlide aborted."""
    inside, at_close = [0], []
    read, close = FileSlide.read_level, FileSlide.close

    def slow_read(self: FileSlide, *region: int) -> np.ndarray:
        inside[0] += 1
        time.sleep(0.05)
        try:
            return read(self, *region)
        finally:
            inside[0] -= 1

    def noting_close(self: FileSlide) -> None:
        at_close.append(inside[0])
        close(self)

    monkeypatch.setattr(FileSlide, "read_level", slow_read)
    monkeypatch.setattr(FileSlide, "close", noting_close)
    with openslide.OpenSlide(str(small_slide)) as slide:
        width, height = slide.dimensions
    cv2.imwrite(str(tmp_path / "bad.png"), np.full((height, width), 77, np.uint8))
    with pytest.raises(TruthError, match="77"):
        segment_slide(small_slide, open_model("threshold"), tmp_path, ALL, truth=tmp_path / "bad.png")
    assert at_close == [0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("histoseg-")]


def test_a_model_that_gives_no_probabilities_is_refused(
    models: Path, small_slide: Path, tmp_path: Path
) -> None:
    """Its card promises softmax, its tensor holds logits."""
    with open_session(models / "nchw_float_logits.onnx", provider="cpu") as session:
        output = dataclasses.replace(session.card.output, activation="softmax")
        session.card = dataclasses.replace(session.card, output=output)
        with pytest.raises(ModelError, match="expected probabilities"):
            segment_slide(small_slide, session, tmp_path, ALL)


def test_a_slide_opened_in_another_colour_space_is_refused(
    models: Path, shared_data: Path, tmp_path: Path
) -> None:
    """The card asks for sRGB; the pixels must be converted, or the run refused."""
    with open_session(models / "threshold.onnx", provider="cpu") as session:
        session.card = dataclasses.replace(
            session.card, input=dataclasses.replace(session.card.input, color_space="sRGB")
        )
        path = shared_data / "slides" / "sm_image.dcm"
        report = segment_slide(path, session, tmp_path / "a", ALL)
        assert report["slide"]["color_space"] == "sRGB"
        assert "sRGB" in report["slide"]["color_profile"]
        with (
            FileSlide(path) as slide,
            pytest.raises(SlideError, match="color_space 'device', expected 'sRGB'"),
        ):
            segment_slide(slide, session, tmp_path / "b", ALL)
    assert not (tmp_path / "b").exists()


# optional outputs


@pytest.mark.parametrize("name", ["unet", "constant"])
def test_probabilities_are_what_the_labels_come_from(
    open_model, small_slide: Path, tmp_path: Path, name: str
) -> None:
    """They agree with the stream, pixel for pixel; also where a run of panels was stopped and went on."""
    options = RunOptions(probabilities=True, batch_size=1)
    session = open_model(name)
    segment_slide(small_slide, session, tmp_path, options)
    written = tifffile.imread(tmp_path / "small" / "probabilities.tif")
    classes = len(session.card.class_names)
    written = written[None] if written.ndim == 2 else written
    assert written.shape == (classes if classes > 2 else 1, 620, 700)
    with histoseg.Segmenter(session, options=options) as segmenter:
        bands = [band.probabilities for band in segmenter.stream(small_slide, probabilities=True)]
    values = np.moveaxis(np.concatenate(bands), -1, 0)[-len(written) :]
    np.testing.assert_array_equal(written, np.rint(values * np.float32(255)).astype(np.uint8))


def test_probabilities_survive_a_stop_and_panels(
    monkeypatch: pytest.MonkeyPatch, open_model, small_slide: Path, tmp_path: Path
) -> None:
    session, options = open_model("unet"), RunOptions(probabilities=True, batch_size=1, tissue=False)
    segment_slide(small_slide, session, tmp_path / "whole", options)
    monkeypatch.setattr("histoseg.planning.fit_panels", lambda *_, **__: 3)
    options = dataclasses.replace(options, max_memory=1 << 40)
    seen = []

    def stop_once(progress: RunProgress) -> None:
        seen.append(progress.done)
        if len(seen) == 40:
            raise StopError

    with pytest.raises(StopError):
        segment_slide(small_slide, session, tmp_path / "cut", options, on_progress=stop_once)
    report = segment_slide(small_slide, session, tmp_path / "cut", options, on_progress=stop_once)
    assert report["resumed_bands"] > 0
    name = "small/probabilities.tif"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
