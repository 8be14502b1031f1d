"""What README.md and docs/ say of the source is so: links, messages, fields, versions."""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from histoseg.demo import draw_slide, write_pyramid

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SOURCES = ("runtime", "train", "export")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# what stands in a source's string for a value, and in a page for anything
GAP = "\0"
LEAST_LETTERS = 6
INNER = "CannotReadError"
README_LINES = 150


def read_words(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def iter_links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", read_words(page)):
            if not link.startswith(("http://", "https://")):
                yield page, link


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read_words(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), list(iter_links()), ids=lambda each: getattr(each, "name", each))
def test_links_lead_somewhere(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{page.name}: {link}"
    assert not anchor or anchor in list_anchors(target), f"{page.name}: {link} has no such heading"


def test_every_page_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = {ROOT / "docs" / name for name in re.findall(r"\]\((\w[\w-]*\.md)\)", index)}
    assert listed == set(PAGES) - {ROOT / "README.md", ROOT / "docs" / "README.md"}


def test_the_readme_is_short_and_leads_to_the_pages() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert "(docs/README.md)" in text


def test_figures_are_small() -> None:
    for path in (ROOT / "docs").iterdir():
        assert path.stat().st_size < 350_000, path


def spell(node: ast.expr) -> str:
    """Return the text of an expression, with a gap for each value in it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(spell(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return spell(left) + spell(right)
    return GAP


def list_sources(*folders: str) -> list[ast.Module]:
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]


def list_strings() -> set[str]:
    trees = list_sources(*SOURCES)
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return {spell(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)} - {GAP}


def list_quotes(page: Path) -> list[str]:
    """Return the messages in the first column of a page's tables that have one."""
    quotes = []
    for table in re.findall(
        r"^\| it says \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", read_words(page) + "\n", re.MULTILINE
    ):
        for row in table.splitlines():
            quotes += re.findall(r"`([^`]+)`", row.split(" | ")[0])
    return quotes


def compile_quote(quote: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, quote.split("..."))), re.DOTALL)


STRINGS = list_strings()
QUOTING = [page for page in PAGES if list_quotes(page)]


@pytest.mark.parametrize(
    ("page", "quote"),
    [(page, quote) for page in QUOTING for quote in list_quotes(page)],
    ids=lambda each: getattr(each, "name", each),
)
def test_messages_are_in_the_source(page: Path, quote: str) -> None:
    assert len(re.findall(r"[a-zA-Z]", quote)) >= LEAST_LETTERS, "too short to be found"
    pattern = compile_quote(quote)
    assert any(pattern.search(text) for text in STRINGS), f"{page.name}: nothing in the source says '{quote}'"


def test_messages_are_quoted_on_both_pages() -> None:
    assert {page.name for page in QUOTING} >= {"export.md", "troubleshooting.md"}


def list_refusals(*folders: str) -> list[str]:
    """Return the messages of our own errors and of click's, values left out."""
    calls = [
        node.exc
        for tree in list_sources(*folders)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
    ]
    # what a reader of files says of itself ends in the message of `saved by`
    ours = [call for call in calls if not hasattr(builtins, name := ast.unparse(call.func)) and name != INNER]
    texts = (spell(call.args[0]) for call in ours)
    return [text for text in texts if len(re.findall(r"[a-zA-Z]", text)) >= LEAST_LETTERS]


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("export", ["export.md"]),
        ("runtime", ["troubleshooting.md"]),
        ("train", ["troubleshooting.md", "export.md"]),
    ],
)
def test_every_message_is_explained(folder: str, names: list[str]) -> None:
    patterns = [compile_quote(quote) for name in names for quote in list_quotes(ROOT / "docs" / name)]
    texts = list_refusals(folder)
    assert len(texts) > 50
    missing = [text for text in texts if not any(pattern.search(text) for pattern in patterns)]
    assert not missing, f"docs/{names[0]} does not explain: " + "; ".join(missing).replace(GAP, "...")


def iter_fields(value: Any) -> Iterator[str]:
    """Yield the names of all fields of a JSON value."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield name
            yield from iter_fields(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from iter_fields(inside)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run with a truth leaves."""
    folder = tmp_path_factory.mktemp("result")
    rgb, truth = draw_slide(256, seed=3)
    write_pyramid(folder / "slide.tif", np.ascontiguousarray(rgb), 0.5)
    assert cv2.imwrite(str(folder / "mask.png"), truth * np.uint8(255))
    program = Path(sys.executable).parent / "histoseg-run"
    words = ["slide.tif", "-o", "out", "--truth", "mask.png", "--provider", "cpu"]
    subprocess.run([program, *words], check=True, cwd=folder, timeout=600)
    return folder / "out" / "slide"


def test_every_file_of_a_result_is_explained(result: Path) -> None:
    explained = read_words(ROOT / "docs" / "formats.md")
    assert [path.name for path in result.iterdir() if f"`{path.name}`" not in explained] == []


def test_every_field_of_the_report_is_explained(result: Path) -> None:
    report = json.loads((result / "report.json").read_text(encoding="utf-8"))
    for name in ("options", "placement", "run", "files"):  # inside are names of options, providers and files
        report[name] = None
    explained = set(re.findall(r"`(\w+)`", read_words(ROOT / "docs" / "formats.md")))
    assert set(iter_fields(report)) <= explained


def read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_oldest() -> dict[str, str]:
    project = read_project()
    named = chain(project["dependencies"], *project["optional-dependencies"].values())
    found = [Requirement(text) for text in named]
    return {each.name: str(each.specifier).removeprefix(">=") for each in found}


def read_tested() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def test_versions_are_those_of_the_project() -> None:
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|", read_words(ROOT / "docs" / "install.md"), re.MULTILINE
    )
    assert len(rows) >= 5
    oldest, tested = read_oldest(), read_tested()
    assert rows == [(name, oldest[name], tested[name]) for name, _, _ in rows]


def test_extras_are_explained() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = {name for found in re.findall(r"'\.\[([\w,]+)\]'", text) for name in found.split(",")}
    assert named == read_project()["optional-dependencies"].keys()
