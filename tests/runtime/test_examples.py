from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def model_words(models: Path) -> list[str | Path]:
    return ["--model", models / "threshold.onnx", "--provider", "cpu"]


def test_embed_pull_counts_the_classes(models: Path, small_slide: Path) -> None:
    done = run_example("embed_pull", small_slide, *model_words(models))
    assert (done.returncode, done.stderr) == (0, "")
    counts = {name: int(px) for name, px in re.findall(r"^(\w+): (\d+) px$", done.stdout, re.MULTILINE)}
    assert sum(counts.values()) == 700 * 620
    assert counts["nucleus"] > 1000
    rows = [tuple(map(int, found)) for found in re.findall(r"rows (\d+) to (\d+)", done.stdout)]
    assert [begin for begin, _ in rows] == [0, *(end for _, end in rows[:-1])]
    assert rows[-1][1] == 620


def test_embed_push_gets_every_row(models: Path, small_slide: Path) -> None:
    done = run_example("embed_push", small_slide, *model_words(models))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [tuple(map(int, found)) for found in re.findall(r"rows (\d+) to (\d+)", done.stdout)]
    assert [begin for begin, _ in rows] == [0, *(end for _, end in rows[:-1])]
    assert rows[-1][1] == 620
    assert done.stdout.splitlines()[-1].startswith("scanned:")


def test_scanner_writes_what_the_file_gives(models: Path, small_slide: Path, tmp_path: Path) -> None:
    words = ["-o", tmp_path, "--mpx-per-second", "2", "--field", "200"]
    done = run_example("scanner", small_slide, *words, *model_words(models))
    assert (done.returncode, done.stderr) == (0, "")
    found = re.match(r"ready (\d+\.\d+) s after the last field; a band of \d+ tiles takes", done.stdout)
    assert found
    labels = tifffile.imread(tmp_path / "small" / "labels.tif")
    assert labels.shape == (620, 700)
    assert 0.01 < np.mean(labels == 1) < 0.99


@pytest.mark.parametrize("name", ["embed_pull", "embed_push", "scanner"])
def test_a_missing_slide_is_one_line(name: str, models: Path, tmp_path: Path) -> None:
    done = run_example(name, tmp_path / "missing.svs", *model_words(models))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: ")
    assert len(done.stderr.splitlines()) == 1
