"""Every command and every Python block of README.md and docs/ does what the page says: it runs.

Names such as `slide.svs` or `model.keras` stand for the reader's own files; `MAKERS` makes small ones. What
is neither run nor among `EXCEPTIONS` fails, so that no page escapes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from histoseg.demo import draw_slide, write_pyramid
from histoseg.models import default_model

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HISTOSEG_SHARED") or ROOT.parent / "shared")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGES = ("sh", "console", "python")
OUTPUT_FLAGS = ("-o", "--out", "--output", "--conformance", "-w")

# Packages that a page names and no extra brings.
OTHERS = {"dask-jobqueue"}

# Whose options are not ours.
FOREIGN = ("pip", "uv", "vips", "dask", "jq")

# Commands that are not tried here, and why.
EXCEPTIONS = {
    ". .venv/bin/activate": "changes the shell it runs in",
    ".ci/run": "runs these tests",
    "histoseg-run --demo": "tests/runtime/test_demo.py runs it",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of its first line of text, from 1."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command line of a block."""

    block: Block
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.block.page.name}:{self.line}: {self.text}"

    @property
    def plain(self) -> str:
        """The command without the environment that its program lies in."""
        return re.sub(r"^\S+/bin/", "", self.text)


def iter_blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    begin: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = number
        else:
            yield Block(page, begin + 2, lines[begin][3:].strip(), "\n".join(lines[begin + 1 : number]))
            begin = None
    assert begin is None, f"{page.name}:{begin}: the block does not end"


def iter_commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a `sh` block, and what follows the prompt in a `console` block."""
    text = ""
    begin = 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        if block.language == "console" and not text:
            if not line.startswith("$ "):
                continue
            line = line[2:]  # noqa: PLW2901
        begin = begin if text else number
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        # shlex takes any # for a comment, the shell only one that begins a word
        words = list(takewhile(lambda word: not word.startswith("#"), shlex.split(text)))
        for part in shlex.join(words).split(" '&&' "):
            if part:
                yield Command(block, begin, part)
        text = ""


BLOCKS = [block for page in PAGES for block in iter_blocks(page)]
COMMANDS = [
    command for block in BLOCKS if block.language in ("sh", "console") for command in iter_commands(block)
]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def make_slide(path: Path) -> None:
    rgb, _ = draw_slide(700, seed=3)
    write_pyramid(path, np.ascontiguousarray(rgb[:620]), 0.5)


def make_mask(path: Path) -> None:
    _, truth = draw_slide(700, seed=3)
    assert cv2.imwrite(str(path), truth[:620] * np.uint8(255))


def make_regions(path: Path) -> None:
    ring = "[[50, 50], [600, 50], [600, 500], [50, 500], [50, 50]]"
    geometry = f'{{"type": "Polygon", "coordinates": [{ring}]}}'
    feature = f'{{"type": "Feature", "geometry": {geometry}, "properties": {{}}}}'
    path.write_text(f'{{"type": "FeatureCollection", "features": [{feature}]}}', encoding="utf-8")


def make_slides(path: Path) -> None:
    path.mkdir()
    make_slide(path / "a.svs")
    for name in ("b.svs", "c.ndpi", "d.ndpi"):
        (path / name).symlink_to("a.svs")


def make_annotations(path: Path) -> None:
    path.mkdir()
    for stem in "ab":
        make_mask(path / f"{stem}.png")


def make_data(path: Path) -> None:
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    for seed in range(4):
        rgb, truth = draw_slide(96, 100 + seed)
        assert cv2.imwrite(str(path / "images" / f"{seed}.png"), rgb[..., ::-1])
        assert cv2.imwrite(str(path / "masks" / f"{seed}.png"), truth * np.uint8(255))


def make_onnx(path: Path) -> None:
    shutil.copy(default_model(), path)


def make_keras(path: Path) -> None:
    """Save a tiny network of random weights, as `histoseg-train fit` does."""
    import keras

    from histoseg_train.architectures import build_architecture, parse_architecture
    from histoseg_train.metadata import KerasMetadata
    from histoseg_train.modelfile import save_model

    metadata = KerasMetadata(
        "unet-w4-d2", ("background", "nucleus"), ("#ffffff", "#00a000"), 0.5, "unit", (64, 64)
    )
    keras.utils.set_random_seed(1)
    network = build_architecture((None, None, 3), 2, options=parse_architecture("unet-w4-d2"))
    head = next(layer for layer in reversed(network.layers) if layer.get_weights())
    kernel, bias = head.get_weights()
    head.set_weights(
        [20 * kernel, np.add(bias, (0.3, 0))]
    )  # no ties between classes, which rounding would decide
    save_model(network, path, metadata)


def make_bundle(path: Path) -> None:
    from histoseg_export.conformance import write_bundle

    write_bundle(ROOT / "tests" / "data" / "unet.onnx", path, None)


def make_results(path: Path) -> None:
    """Run the built-in model on a drawn slide."""
    make_slide(path.with_name("slide.svs"))
    make_mask(path.with_name("mask.png"))
    words = ["slide.svs", "-o", path.name, "--truth", "mask.png", "--provider", "cpu"]
    program = Path(sys.executable).parent / "histoseg-run"
    subprocess.run([program, *words], check=True, cwd=path.parent, timeout=600)


def make_dicom_results(path: Path) -> None:
    """Run a model on a DICOM slide of 50 x 50 px."""
    scanned = SHARED / "data" / "slides" / "sm_image.dcm"
    if not scanned.is_file() or find_spec("highdicom") is None:
        pytest.skip("no DICOM slide, or no highdicom, to make a DICOM segmentation")
    shutil.copy(scanned, path.with_name("slide.dcm"))
    words = ["slide.dcm", "-o", path.name, "--provider", "cpu", "--dicom-seg"]
    program = Path(sys.executable).parent / "histoseg-run"
    subprocess.run([program, *words], check=True, cwd=path.parent, timeout=600)


def link_from_root(path: Path) -> None:
    path.symlink_to(ROOT / path.name)


MAKERS: dict[str, Callable[[Path], None]] = {
    "slide.svs": make_slide,
    "slides": make_slides,
    "mask.png": make_mask,
    "regions.geojson": make_regions,
    "annotations": make_annotations,
    "data": make_data,
    "DATA": make_data,
    "model.onnx": make_onnx,
    "model.keras": make_keras,
    "model.h5": make_keras,
    "bundle": make_bundle,
    "results": make_results,
    "dicom-results": make_dicom_results,
    "examples": link_from_root,
    "train": link_from_root,
    "constraints.txt": link_from_root,
}


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`stand_in("slide.svs")` makes a small file of that name once, and returns where it lies."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp("standin") / name
            MAKERS[name](path)
            made[name] = path
        return made[name]

    return make


@pytest.fixture
def enter(
    tmp_path: Path, stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[set[str]], Path]:
    """`enter(names)` makes a fresh working folder that holds those of the reader's files."""

    def go(names: set[str]) -> Path:
        for name in names & MAKERS.keys():
            (tmp_path / name).symlink_to(stand_in(name))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        return tmp_path

    return go


def find_inputs(words: list[str]) -> set[str]:
    """Return the first parts of all words that are not where something is written to."""
    taken = [word for before, word in zip(["", *words], words, strict=False) if before not in OUTPUT_FLAGS]
    return {Path(word).parts[0] for word in taken if Path(word).parts}


def run_process(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(words), capture_output=True, text=True, check=False, timeout=600)


def find_click(program: str) -> click.Command:
    from histoseg import cli, doctor
    from histoseg_export import cli as export_cli
    from histoseg_train import cli as train_cli

    commands = (cli.command, doctor.command, export_cli.command, train_cli.command)
    return next(command for command in commands if command.name == program)


def run_click(words: list[str]) -> None:
    """Run one of our commands in this process, which loads TensorFlow once."""
    assert not find_click(words[0]).main(words[1:], standalone_mode=False)


def parse_click(words: list[str]) -> None:
    """Read a command's options, and the recipe it names, and go no further."""
    command, rest = find_click(words[0]), words[1:]
    if isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    assert command.make_context(words[0], rest).params


def run_export(words: list[str]) -> None:
    """Export a tiny network of random weights, which the gate of int8 is not made for."""
    if words[1] not in MAKERS or "--precision" in words:
        return parse_click(words)
    return run_click(words)


def run_slides(words: list[str]) -> None:
    """Segment in a process of its own, as a limit of memory demands; who has no GPU is told so."""
    done = run_process(Path(sys.executable).parent / words[0], *words[1:])
    if "--provider" not in words:
        assert done.returncode == 0, done.stderr
    elif done.returncode:
        provider = words[words.index("--provider") + 1]
        assert provider != "cpu", done.stderr
        assert done.stderr.startswith(f"histoseg-run: error: provider '{provider}'")


def run_train(words: list[str]) -> None:
    """Fit for one step; data sets that are not here (`--root`) are named, and not read."""
    if "--root" in words:
        return parse_click(words)
    if words[1] == "fit":
        words = [*words, "--epochs", "1", "--steps", "1", "--patch", "32", "--batch", "1"]
        words += [] if "--arch" in words else ["--arch", "unet-w4-d2"]
    return run_click(words)


def run_python(words: list[str]) -> None:
    """Run a script of the repository, or a module: `-m venv` without its pip, which takes seconds."""
    quick = ["--without-pip"] if words[1:3] == ["-m", "venv"] else []
    done = run_process(sys.executable, *words[1:], *quick)
    assert done.returncode == 0, done.stderr


def check_pip(words: list[str]) -> None:
    """Compare what would be installed with what there is: no network here."""
    verb, *rest = words[1:]
    if verb == "uninstall":
        assert {word for word in rest if not word.startswith("-")} <= list_required()
        return
    assert verb in ("install", "wheel")
    # the index has another project of our name
    assert "--no-index" in rest or not any(word.startswith("histoseg") for word in rest)
    while rest:
        word = rest.pop(0)
        if word in ("-c", "-w", "--find-links"):
            value = rest.pop(0)
            assert word != "-c" or (ROOT / value).is_file()
        elif word not in ("-e", "--no-index", "--force-reinstall"):
            check_requirement(word)


def check_requirement(word: str) -> None:
    requirement = Requirement(word.replace(".", "histoseg", 1) if word.startswith(".") else word)
    if requirement.name == "histoseg":
        assert requirement.extras <= read_pyproject()["optional-dependencies"].keys()
        assert requirement.extras, "without an onnxruntime nothing runs"
    else:
        assert requirement.name in list_required() | OTHERS


def list_required() -> set[str]:
    project = read_pyproject()
    named = chain(project["dependencies"], *project["optional-dependencies"].values())
    return {Requirement(text).name for text in named}


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def check_make(words: list[str]) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = run_process("make", "-C", ROOT, "-n", *words[1:])
    assert done.returncode == 0, done.stderr


WAYS: dict[str, Callable[[list[str]], None]] = {
    "histoseg-run": run_slides,
    "histoseg-doctor": run_click,
    "histoseg-export": run_export,
    "histoseg-train": run_train,
    "python": run_python,
    "python3": run_python,
    "pip": check_pip,
    "make": check_make,
}


@pytest.mark.parametrize("command", {each.plain: each for each in reversed(COMMANDS)}.values(), ids=str)
def test_commands_run(command: Command, enter: Callable[[set[str]], Path]) -> None:
    if command.plain in EXCEPTIONS:
        return
    words = shlex.split(command.plain)
    assert words[0] in WAYS, f"'{words[0]}' is neither run nor an exception"
    enter(find_inputs(words))
    WAYS[words[0]](words)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, enter: Callable[[set[str]], Path]) -> None:
    enter({name for name in MAKERS if f'"{name}' + ('"' if "." in name else "/") in block.text})
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})  # noqa: S102


PROGRAM = "(?:" + "|".join(map(re.escape, WAYS)) + ")"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_no_command_hides_in_a_block_of_another_kind(block: Block) -> None:
    if block.language in LANGUAGES:
        assert block.language == "python" or any(iter_commands(block)), "holds no command"
        return
    hidden = re.findall(rf"^\s*(?:\$|import|from|(?:\S*/)?{PROGRAM}) .*", block.text, re.MULTILINE)
    assert not hidden, f"the block's language is '{block.language}', expected one of {', '.join(LANGUAGES)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_outside_a_block(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(rf"^(?: {{4,}}|\t)\S*{PROGRAM} .*", text, re.MULTILINE) == []
    for command in re.findall(r"`(pip [^`]+|make \w+)`", text):
        words = shlex.split(command)
        WAYS[words[0]](words)


def list_options(command: click.Command) -> set[str]:
    inside = command.commands.values() if isinstance(command, click.Group) else ()
    own = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
    return own.union(*map(list_options, inside))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    known = set().union(*(list_options(find_click(name)) for name in WAYS if name.startswith("histoseg")))
    spans = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    ours = [span for span in spans if span.split()[0] not in FOREIGN]
    named = {flag for span in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", span)}
    assert named <= known | {"--help", "--version"}


def test_exceptions_are_still_there() -> None:
    assert EXCEPTIONS.keys() <= {command.plain for command in COMMANDS}


def test_a_command_over_two_lines_is_one() -> None:
    block = Block(Path("x.md"), 7, "sh", "a b \\\n  --c 'd e'  # note\n\nf && g 'h&&i'\n# only a note")
    found = [(command.line, shlex.split(command.text)) for command in iter_commands(block)]
    assert found == [(7, ["a", "b", "--c", "d e"]), (10, ["f"]), (10, ["g", "h&&i"])]


def test_only_what_follows_a_prompt_is_a_command() -> None:
    block = Block(Path("x.md"), 1, "console", "$ a b \\\n    c\nd e\n$ f")
    assert [shlex.split(command.text) for command in iter_commands(block)] == [["a", "b", "c"], ["f"]]
