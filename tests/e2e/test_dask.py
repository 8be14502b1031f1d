"""A fleet on a real Dask cluster of two worker processes, one of which is killed."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from histoseg.demo import draw_slide, write_pyramid
from histoseg.errors import ModelError, OptionError
from histoseg.fleet.run import FleetError, ModelChoice, Order
from histoseg.fleet.sources import SlideSource
from histoseg.options import RunOptions

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
from histoseg.fleet.cluster import Cluster  # noqa: E402

BROKEN = ["jpegls.dcm", "lfs-pointer.ndpi", "random-bytes.svs"]
SAME_BYTES = ("labels.tif", "objects.geojson.gz", "overlay.png", "tissue.png")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def slides(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slides, three of them broken; the first takes longer than the others."""
    folder = tmp_path_factory.mktemp("fleet") / "slides"
    folder.mkdir()
    for seed in range(9):
        rgb, _ = draw_slide(300 if seed else 1000, seed)
        write_pyramid(folder / f"a{seed}.tif", rgb, 0.5)
    for name in BROKEN:
        shutil.copy(shared_data / "bad_slides" / name, folder)
    return folder


def kill_worker_of(slide: str, cluster: Any) -> None:
    """Kill the worker that runs a slide, which is the first that it was given."""
    with distributed.Client(cluster, set_as_default=False) as client:
        busy = client.processing()
        address = next(
            name for name, keys in busy.items() if any(f"histoseg-{slide}-" in key for key in keys)
        )
        os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)


def read_rows(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "summary.json").read_text())["slides"]
    for row in rows:
        row.pop("seconds")
    return rows


def test_a_worker_that_is_killed_costs_only_its_slides_last_bands(
    cluster: Any, slides: Path, models: Path, run_command: Callable, start_command: Callable
) -> None:
    folder = slides.parent
    words = [slides.name, "--batch", "1", "-m", models / "unet.onnx"]
    alone = run_command("histoseg-run", *words, "-o", "alone", cwd=folder)
    assert alone.returncode == 1, alone.stderr

    address = cluster.scheduler_address
    process = subprocess.Popen(
        start_command("histoseg-run", *words, "-o", "fleet", "--json", "--dask", address),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    journal = folder / "fleet" / ".a0.part" / ".journal"
    while not journal.exists() or journal.stat().st_size < 8_000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill_worker_of("a0", cluster)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stderr

    events = [json.loads(line) for line in stdout.splitlines()]
    begun = [event["slide"] for event in events if event["event"] == "slide"]
    assert begun.count(str(Path(slides.name) / "a0.tif")) == 2
    assert {key: events[-1][key] for key in ("done", "skipped", "failed")} == {
        "done": 9, "skipped": 0, "failed": 3,
    }  # fmt: skip
    assert json.loads((folder / "fleet" / "a0" / "report.json").read_text())["resumed_bands"] > 0
    for seed in range(9):
        for name in SAME_BYTES:
            paths = [folder / out / f"a{seed}" / name for out in ("alone", "fleet")]
            assert paths[0].read_bytes() == paths[1].read_bytes(), f"a{seed}/{name}"
    rows = read_rows(folder / "fleet")
    assert rows == read_rows(folder / "alone")
    assert [Path(row["slide"]).name for row in rows if row["reason"]] == BROKEN

    # the same command has nothing left to do, wherever it runs
    again = run_command("histoseg-run", *words, "-o", "fleet", "--jobs", "2", cwd=folder)
    assert again.returncode == 1
    assert again.stdout.count("finished before") == 9


def test_a_signal_stops_the_tasks_and_keeps_their_journals(
    cluster: Any, models: Path, start_command: Callable, tmp_path: Path
) -> None:
    """Dask itself lets a task's thread run on when nobody wants its result any more."""
    rgb, _ = draw_slide(2000, 1)
    write_pyramid(tmp_path / "long.tif", rgb, 0.5)
    words = ["long.tif", "-o", "out", "--no-tissue", "--batch", "1", "-m", models / "unet.onnx"]
    process = subprocess.Popen(
        start_command("histoseg-run", *words, "--dask", cluster.scheduler_address),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    part = tmp_path / "out" / ".long.part"
    while not (part / ".journal").exists() or (part / ".journal").stat().st_size < 8_000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    said = "histoseg-run: terminated; the same command goes on where it stopped\n"
    assert (process.returncode, stderr) == (143, said)
    deadline = time.monotonic() + 60
    while (left := {path.name for path in part.iterdir()}) != {".journal"}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("model", "options", "kind"),
    [("bad_card", RunOptions(), ValueError), ("constant", RunOptions(threshold=0.5), OptionError)],
)
def test_what_fits_no_slide_is_refused_at_once(
    cluster: Any, models: Path, tmp_path: Path, model: str, options: RunOptions, kind: type[Exception]
) -> None:
    choice = ModelChoice(models / f"{model}.onnx", "cpu")
    with pytest.raises(kind):
        Cluster(choice, Order(tmp_path, options), cluster.scheduler_address)


def test_a_model_travels_with_its_card_and_is_opened_once_a_worker(
    cluster: Any, models: Path, open_model: Callable, tmp_path: Path
) -> None:
    from histoseg.card import card_to_text

    (tmp_path / "hidden").mkdir()
    path = tmp_path / "hidden" / "mine.onnx"
    shutil.copy(models / "no_card.onnx", path)
    path.with_suffix(".json").write_text(card_to_text(open_model("threshold").card))
    rgb, _ = draw_slide(200, 1)
    slides = [SlideSource(tmp_path / f"{name}.tif", name) for name in "ab"]
    for slide in slides:
        write_pyramid(slide.path, rgb, 0.5)
    order = Order(tmp_path / "out", RunOptions(tissue=False))
    with Cluster(ModelChoice(path, "cpu"), order, cluster.scheduler_address) as fleet:
        shutil.rmtree(tmp_path / "hidden")
        assert (fleet.facts.name, fleet.facts.provider) == ("mine", "cpu")
        ended = dict(fleet.run(slides, lambda index, event: None))
    assert [ended[index].reason for index in range(2)] == [None, None]
    assert ended[0].report["model"]["name"] == "mine.onnx"


def test_a_worker_with_another_version_is_refused(
    cluster: Any, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoseg.__version__", "9.9")
    with pytest.raises(FleetError, match=r"the worker tcp://.* has histoseg .*, expected 9\.9"):
        Cluster(ModelChoice(models / "conv.onnx"), Order(tmp_path, RunOptions()), cluster.scheduler_address)


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1", "abacus://here:1"])
def test_a_cluster_that_is_not_there_is_refused(
    models: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoseg.fleet.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(FleetError, match=f"--dask {address}: no Dask scheduler answers there"):
        Cluster(ModelChoice(models / "conv.onnx"), Order(tmp_path, RunOptions()), address)
    with pytest.raises(ModelError, match="no such model file"):
        Cluster(ModelChoice(tmp_path / "none.onnx"), Order(tmp_path, RunOptions()), address)


def test_the_slurm_example_runs_its_words_on_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for dask-jobqueue, which needs a SLURM cluster; its parameters were checked by hand."""
    seen: dict[str, Any] = {}

    class StandIn:
        scheduler_address = "tcp://here:1"

        def __init__(self, **given: Any) -> None:
            seen.update(given)

        def adapt(self, **given: Any) -> None:
            seen.update(given)

        def __enter__(self) -> StandIn:
            return self

        def __exit__(self, *_: object) -> None:
            seen["closed"] = True

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=StandIn))
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "slurm.py"))
    monkeypatch.setattr(sys, "argv", ["slurm.py", "slides/", "--provider", "cuda"])
    started: list[list[str]] = []
    monkeypatch.setattr(
        "subprocess.run", lambda command, check: started.append(command) or SimpleNamespace(returncode=1)
    )
    assert example["main"]() == 1
    assert started == [["histoseg-run", "slides/", "--provider", "cuda", "--dask", "tcp://here:1"]]
    assert (seen["cores"], seen["minimum_jobs"], seen["closed"]) == (1, seen["maximum_jobs"], True)
