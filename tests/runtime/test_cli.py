from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from histoseg.card import card_to_text
from histoseg.cli import PROVIDER_NAMES, command, expand_slides
from histoseg.demo import write_pyramid
from histoseg.errors import SlideError
from histoseg.providers import PROVIDERS

BAD_SLIDES = ["jpegls.dcm", "lfs-pointer.ndpi", "random-bytes.svs", "unopenable.tiff", "untiled.tif"]


@pytest.fixture
def run(
    run_command: Callable, models: Path, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `histoseg-run` with a tiny model in an empty folder."""

    def start(*arguments: str | Path, model: str = "threshold.onnx") -> subprocess.CompletedProcess[str]:
        return run_command("histoseg-run", *arguments, "-m", models / model, cwd=tmp_path)

    return start


def check_refusal(finished: subprocess.CompletedProcess[str], code: int, *said: str) -> str:
    assert finished.returncode == code, finished.stderr
    for word in said:
        assert word in finished.stderr
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert finished.stderr.startswith("histoseg-run: error: ")
    assert finished.stderr.endswith("; see histoseg-run --help\n") == (code == 2)
    assert finished.stdout == ""
    return finished.stderr


def test_a_slide_becomes_a_folder_and_one_line(run, small_slide: Path, tmp_path: Path) -> None:
    finished = run(small_slide, "-o", "out", "--truth", small_slide.with_name("truth.png"))
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert finished.stdout.count("\n") == 1
    report = json.loads((tmp_path / "out" / "small" / "report.json").read_text())
    dice = report["score"]["classes"][1]["dice"]
    for word in ("small.tif", "nucleus", f"{dice:.3f}", "cpu", str(Path("out") / "small")):
        assert word in finished.stdout


def test_without_o_results_lie_in_histoseg_out(run, small_slide: Path, tmp_path: Path) -> None:
    assert run(small_slide).returncode == 0
    assert (tmp_path / "histoseg-out" / "small" / "labels.tif").is_file()


def test_options_reach_the_run(run, small_slide: Path, tmp_path: Path) -> None:
    options = ["--blend", "crop", "--overlap", "20", "--batch", "3", "--threads", "1", "--no-tissue"]
    finished = run(
        small_slide, "-o", "out", "--provider", "cpu", "--mpp", "0.25", "--threshold", "0.3", *options
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "out" / "small" / "report.json").read_text())
    assert report["size_px"] == [350, 310]
    assert report["tiles"]["blend"] == "crop"
    assert report["tiles"]["step_px"] == 44
    assert report["tiles"]["batch_size"] == 3
    assert report["tiles"]["run"] == report["tiles"]["total"]
    assert report["tissue"] is None


def test_the_summary_names_the_classes_and_not_the_background(
    run, models: Path, open_model, small_slide: Path, tmp_path: Path
) -> None:
    card = replace(open_model("threshold").card, class_names=("stain", "glass"), background_index=1)
    (tmp_path / "card.json").write_text(card_to_text(card))
    finished = run(small_slide, "-o", "out", "--card", "card.json", model="no_card.onnx")
    assert finished.returncode == 0, finished.stderr
    assert "stain" in finished.stdout
    assert "glass" not in finished.stdout


@pytest.mark.parametrize("name", BAD_SLIDES)
def test_a_bad_slide_ends_in_one_line(run, shared_data: Path, tmp_path: Path, name: str) -> None:
    finished = run(shared_data / "bad_slides" / name, "-o", "out")
    check_refusal(finished, 1, name)
    assert list(tmp_path.iterdir()) == []


def test_no_bad_slide_was_forgotten(shared_data: Path) -> None:
    assert sorted(path.name for path in (shared_data / "bad_slides").iterdir()) == BAD_SLIDES


def test_one_bad_slide_does_not_stop_the_others(
    run, shared_data: Path, small_slide: Path, tmp_path: Path
) -> None:
    bad = shared_data / "bad_slides" / "untiled.tif"
    finished = run(tmp_path / "missing.svs", bad, small_slide, "-o", "out")
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 2
    assert "missing.svs" in finished.stderr
    assert "untiled.tif" in finished.stderr
    assert finished.stdout.startswith("small.tif: ")
    names = ["index.html", "small", "summary.csv", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    table = finished.stdout[finished.stdout.index("2 of 3 slides failed") :]
    assert "missing.svs  no such file" in table
    assert "untiled.tif" in table
    page = (tmp_path / "out" / "index.html").read_text()
    for name in ("missing.svs", "untiled.tif", "small.tif"):
        assert name in page


def test_a_slide_too_coarse_is_refused_with_both_spacings_and_the_flag(
    run, shared_data: Path, tmp_path: Path
) -> None:
    finished = run(shared_data / "slides" / "camelyon-jpeg.dcm", "-o", "out")
    check_refusal(finished, 1, "camelyon-jpeg", "28.97 um/px", "0.5 um/px", "--allow-coarse")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_an_empty_glob_end_in_one_line(run, tmp_path: Path) -> None:
    check_refusal(run("missing.svs"), 1, "missing.svs", "no such file")
    check_refusal(run("slides/*.svs"), 1, "slides/*.svs", "no file matches")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [("no_card.onnx", "--card"), ("bad_card.onnx", "spacing_um_px"), ("missing.onnx", "no such model file")],
)
def test_a_bad_model_ends_in_one_line(run, small_slide: Path, tmp_path: Path, model: str, said: str) -> None:
    check_refusal(run(small_slide, "-o", "out", model=model), 1, model, said)
    assert list(tmp_path.iterdir()) == []


def test_a_provider_that_is_not_here_ends_in_one_line(run, small_slide: Path, tmp_path: Path) -> None:
    from onnxruntime import get_available_providers

    if "CUDAExecutionProvider" in get_available_providers():
        pytest.skip("this onnxruntime offers CUDA")
    check_refusal(run(small_slide, "--provider", "cuda"), 1, "cuda", "onnxruntime-gpu[cuda,cudnn]")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no slide given"),
        (["SLIDE", "--provider", "abacus"], "'abacus' is no provider"),
        (["SLIDE", "--blend", "median"], "median"),
        (["SLIDE", "--mpp", "0"], "--mpp"),
        (["SLIDE", "--batch", "0"], "--batch"),
        (["SLIDE", "--threshold", "1"], "--threshold"),
        (["SLIDE", "--overlap", "64"], "expected 0"),
        (["SLIDE", "--nonsense"], "--nonsense"),
        (["SLIDE", "--dicom-se"], "Did you mean '--dicom-seg'?; see"),
        (["a/one.svs", "b/one.tif"], "would both write to the folder 'one'"),
        (["a.svs", "b.svs", "--truth", __file__], "--truth is the truth of one slide"),
        (["a.svs", "b.svs", "--truth", "nope"], "--truth nope: no such file or folder"),
        (["SLIDE", "--demo"], "--demo"),
        (["SLIDE", "--jobs", "0"], "--jobs"),
        (["SLIDE", "--jobs", "2", "--dask", "tcp://127.0.0.1:1"], "--jobs is for this machine"),
        (["a.svs", "b.svs", "--roi", "mask.png"], "--roi is a region of one slide"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_usage_errors_exit_2(run, small_slide: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    finished = run(*[str(small_slide) if word == "SLIDE" else word for word in arguments])
    check_refusal(finished, 2, said)
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_is_for_two_classes(run, small_slide: Path) -> None:
    check_refusal(run(small_slide, "--threshold", "0.5", model="constant.onnx"), 2, "3 classes")


def test_a_demo_into_a_file_ends_in_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_refusal(run("--demo", "-o", "file"), 1, "file is a file, expected a folder; choose another -o")


def test_an_out_that_cannot_be_made_ends_in_one_line(run, small_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_refusal(run(small_slide, "-o", "file"), 1, "file is a file, expected a folder; choose another -o")
    check_refusal(run(small_slide, "-o", "/proc/nowhere"), 1, "/proc/nowhere")


@pytest.fixture
def long_run(models: Path, tmp_path: Path, start_command: Callable) -> subprocess.Popen[str]:
    """A run of thousands of tiles that has begun to write."""
    rgb = np.random.default_rng(0).integers(0, 256, (5000, 5000, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "long.tif", rgb, 0.5)
    command = start_command(
        "histoseg-run", "long.tif", "-o", "out", "-m", models / "unet.onnx", "--no-tissue", "--batch", "1"
    )
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # a test runner in the background ignores Ctrl-C, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    while not (tmp_path / "out" / ".long.part").exists():
        assert process.poll() is None, "the run ended before it began to write"
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_cleanly(
    long_run: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    long_run.send_signal(number)
    _, stderr = long_run.communicate(timeout=60)
    assert long_run.returncode == code, stderr
    how = {143: "terminated", 130: "interrupted"}[code]
    assert stderr == f"histoseg-run: {how}; the same command goes on where it stopped\n"
    left = {path.name for path in tmp_path.rglob("*")}
    # the journal, from which the same command goes on, if there was anything to write into it
    assert left in ({"long.tif"}, {"long.tif", "out", ".long.part", ".journal"})


def test_what_is_given_beside_the_slide_and_is_not_there_ends_in_one_line(run, small_slide: Path) -> None:
    check_refusal(run(small_slide, "--card", "nope.json"), 1, "nope.json: no such file", "check --card")
    said = check_refusal(run(small_slide, "--roi", "nope.geojson"), 1, "nope.geojson: no such file, expected")
    assert said.startswith(f"histoseg-run: error: {small_slide}: region of interest: ")


def test_a_provider_is_completed_by_the_names_that_help_and_errors_list(run, small_slide: Path) -> None:
    assert {"auto", *PROVIDERS} == set(PROVIDER_NAMES)
    (option,) = [each for each in command.params if each.name == "provider"]
    completed = option.shell_complete(click.Context(command), "c")
    assert [item.value for item in completed] == ["cpu", "cuda"]
    names = ", ".join(PROVIDER_NAMES)
    assert names in option.help
    check_refusal(run(small_slide, "--provider", "abacus"), 2, names)


def test_a_slide_enlarged_far_beyond_what_it_holds_is_told(run, small_slide: Path) -> None:
    finished = run(small_slide, "-o", "out", "--allow-coarse", "--mpp", "2.3", "--json", "--no-objects")
    events = [json.loads(line) for line in finished.stdout.splitlines()]
    (note,) = [event for event in events if event["event"] == "note"]
    assert note["text"].startswith("enlarged 5-fold (2.3 to 0.5 um/px); ")
    (done,) = [event for event in events if event["event"] == "done"]
    assert done["note"] == note["text"]
    assert note["text"] not in done["line"]


def test_help_names_the_outputs_and_examples(run_command: Callable) -> None:
    finished = run_command("histoseg-run", "--help")
    assert finished.returncode == 0
    for word in (
        "labels.tif",
        "objects.geojson.gz",
        "report.html",
        "overlay.png",
        "report.json",
        "--demo",
        "--provider",
        "Examples",
        "Research use",
    ):
        assert word in finished.stdout


def test_the_help_fits_a_screen_and_forgets_no_option(run_command: Callable) -> None:
    lines = run_command("histoseg-run", "--help", env={"COLUMNS": "100"}).stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    flags = {flag for option in command.params if option.name != "slides" for flag in option.opts}
    assert {flag for flag in flags if not any(flag in line for line in lines)} == set()


def test_the_version_is_the_packages(run_command: Callable) -> None:
    import histoseg

    assert histoseg.__version__ in run_command("histoseg-run", "--version").stdout


def test_a_closed_pipe_is_no_failure(
    start_command: Callable, small_slide: Path, models: Path, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = start_command(
        "histoseg-run", small_slide, "-m", models / "threshold.onnx", "-o", tmp_path / "out"
    )
    finished = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "Traceback" not in finished.stderr
    assert (tmp_path / "out" / "small" / "labels.tif").is_file()


# slides from paths and globs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_globs_expand_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "b.svs", "a.svs", "c.tif", "deep/er/d.svs")
    monkeypatch.chdir(tmp_path)
    assert expand_slides(("*.svs", "c.tif", "a.svs")) == [Path("a.svs"), Path("b.svs"), Path("c.tif")]
    assert expand_slides(("**/d.svs",)) == [Path("deep/er/d.svs")]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "slide[1].svs", "slide1.svs")
    assert expand_slides((str(tmp_path / "slide[1].svs"),)) == [tmp_path / "slide[1].svs"]


def test_one_slide_by_two_spellings_is_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.svs")
    monkeypatch.chdir(tmp_path)
    assert len(expand_slides(("a.svs", "./a.svs"))) == 1


def test_clashing_and_missing_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="both write"):
        expand_slides(("x/a.svs", "y/a.tif"))
    with pytest.raises(click.UsageError, match="no slide"):
        expand_slides(())
    with pytest.raises(SlideError, match="no file matches"):
        expand_slides((str(tmp_path / "*.svs"),))


def test_a_name_that_is_no_text_stops_nothing(
    run_command: Callable, models: Path, small_slide: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"b\xe9d.tif")
    try:
        shutil.copy(small_slide, odd)
    except OSError:
        pytest.skip("the file system takes no such name")
    model = models / "threshold.onnx"
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    finished = run_command("histoseg-run", odd, small_slide, "-o", tmp_path / "out", "-m", model, env=strict)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert r"b\udce9d.tif" in finished.stdout
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 2
    assert r"b\udce9d.tif" in (tmp_path / "out" / "summary.csv").read_text("utf-8")


def test_the_share_is_that_of_the_region(run, small_slide: Path, tmp_path: Path) -> None:
    corners = [[0, 0], [0, 64], [64, 64], [64, 0], [0, 0]]
    shape = {"type": "Polygon", "coordinates": [corners]}
    (tmp_path / "roi.geojson").write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": shape})
    )
    assert " % of the slide (" in run(small_slide, "-o", "whole").stdout
    assert " % of the region (" in run(small_slide, "-o", "part", "--roi", "roi.geojson").stdout


# many slides


@pytest.fixture
def folder(shared_data: Path, small_slide: Path, tmp_path: Path) -> Path:
    """Two slides and one that does not open."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("b.tif", "a.tif"):
        shutil.copy(small_slide, slides / name)
    shutil.copy(shared_data / "bad_slides" / "lfs-pointer.ndpi", slides)
    return slides


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_summary(run, folder: Path, tmp_path: Path) -> None:
    finished = run(folder, "-o", "out")
    assert finished.returncode == 1
    rows = read_rows(tmp_path / "out" / "summary.csv")
    assert [(row["folder"], row["status"]) for row in rows] == [
        ("a", "done"), ("b", "done"), ("lfs-pointer", "failed"),
    ]  # fmt: skip
    assert "Git LFS pointer" in rows[2]["reason"]
    report = json.loads((tmp_path / "out" / "a" / "report.json").read_text())
    assert float(rows[0]["mm2_nucleus"]) == pytest.approx(report["classes"][1]["area_mm2"], abs=1e-6)


def test_a_rerun_skips_what_is_finished_unless_it_is_told_not_to(run, folder: Path, tmp_path: Path) -> None:
    run(folder, "-o", "out")
    before = (tmp_path / "out" / "a" / "report.json").stat().st_mtime_ns
    first = read_rows(tmp_path / "out" / "summary.csv")
    again = run(folder, "-o", "out")
    assert again.returncode == 1
    assert again.stdout.count("finished before") == 2
    second = read_rows(tmp_path / "out" / "summary.csv")
    assert [row["status"] for row in second] == ["skipped", "skipped", "failed"]
    assert [row["seconds"] for row in second[:2]] == [row["seconds"] for row in first[:2]]
    assert (tmp_path / "out" / "a" / "report.json").stat().st_mtime_ns == before
    run(folder, "-o", "out", "--overwrite")
    assert (tmp_path / "out" / "a" / "report.json").stat().st_mtime_ns > before


def test_json_is_one_event_a_line_and_nothing_else(run, folder: Path) -> None:
    finished = run(folder, "-o", "out", "--json")
    events = [json.loads(line) for line in finished.stdout.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "tiles"]
    assert kinds == ["start", "slide", "done", "slide", "done", "slide", "failed", "end"]
    assert events[-1]["code"] == finished.returncode == 1
    assert events[-1]["summary"] == str(Path("out") / "summary.csv")
    assert [event["index"] for event in events if event["event"] == "slide"] == [0, 1, 2]


def test_quiet_says_failures_alone(run, folder: Path) -> None:
    finished = run("slides", "-o", "out", "--quiet")
    assert finished.stdout == ""
    bad = Path("slides") / "lfs-pointer.ndpi"
    assert finished.stderr.startswith(f"histoseg-run: error: {bad}: is a Git LFS pointer")
    assert finished.stderr.count("lfs-pointer") == finished.stderr.count("\n") == 1


def test_one_slide_of_a_folder_that_fails_needs_no_table(run, folder: Path) -> None:
    for name in ("a.tif", "b.tif"):
        (folder / name).unlink()
    check_refusal(run(folder, "-o", "out"), 1, "lfs-pointer.ndpi")


def test_a_folder_of_truths_scores_each_slide(run, folder: Path, small_slide: Path, tmp_path: Path) -> None:
    (folder / "lfs-pointer.ndpi").unlink()
    (tmp_path / "truths").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(small_slide.with_name("truth.png"), tmp_path / "truths" / name)
    assert run(folder, "-o", "out", "--truth", "truths").returncode == 0
    rows = read_rows(tmp_path / "out" / "summary.csv")
    assert 0.1 < float(rows[0]["dice_nucleus"]) < 1
    (tmp_path / "truths" / "b.png").unlink()
    check_refusal(run(folder, "-o", "out", "--truth", "truths"), 2, "holds none for b")


def test_results_are_the_same_from_several_processes(run, folder: Path, tmp_path: Path) -> None:
    assert run(folder, "-o", "one").returncode == 1
    assert run(folder, "-o", "two", "--jobs", "2").returncode == 1
    for name in ("labels.tif", "objects.geojson.gz", "overlay.png", "tissue.png"):
        for slide in ("a", "b"):
            one, two = (tmp_path / out / slide / name for out in ("one", "two"))
            assert one.read_bytes() == two.read_bytes(), name
    one, two = (read_rows(tmp_path / out / "summary.csv") for out in ("one", "two"))
    for row in (*one, *two):
        row.pop("seconds")
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "model", "code", "said"),
    [
        ([], "bad_card.onnx", 1, "spacing_um_px"),
        (["--overlap", "64"], "threshold.onnx", 2, "expected 0"),
        (["--dask", "tcp://127.0.0.1:1"], "missing.onnx", 1, "no such model file"),
    ],
)
def test_what_fits_no_slide_ends_in_one_line(
    run, folder: Path, tmp_path: Path, arguments: list[str], model: str, code: int, said: str
) -> None:
    check_refusal(run(folder, "-o", "out", *(arguments or ["--jobs", "2"]), model=model), code, said)
    assert not (tmp_path / "out").exists()
