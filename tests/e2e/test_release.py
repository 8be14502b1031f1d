"""A release is what its tag says; the workflows test what the package claims."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the group dev")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "check_release"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGES = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-01-31

### Added

- A.

## [1.1.0] - 2026-01-01

- B.
"""

Check = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """`check(tag)` runs the script in a project of version 1.2.0."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    package = tmp_path / "runtime" / "histoseg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Words."""\n\n__version__ = "1.2.0"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(CHANGES, encoding="utf-8")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, tmp_path / ".ci" / "check_release", *words]
        return subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)

    return run


def refuse(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_the_right_tag_passes_and_gives_its_entry(check: Check) -> None:
    done = check("v1.2.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "### Added\n\n- A.\n"


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2", "release", "v1.2.0-final", ""])
def test_a_tag_of_another_form_is_refused(tag: str, check: Check) -> None:
    refuse(check(tag), f"'{tag}'", "expected one such as v0.1.0")


@pytest.mark.parametrize("tag", ["v1.1.0", "v1.2.1", "v1.2.0rc1"])
def test_the_tag_of_another_version_is_refused(tag: str, check: Check) -> None:
    refuse(check(tag), tag, "1.2.0")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[1.2.0]", "[1.3.0]", "no entry for 1.2.0 (it has Unreleased, 1.3.0, 1.1.0)"),
        (" - 2026-01-31", " - unreleased", "has no date"),
        (" - 2026-01-31", "", "has no date"),
        ("- A.\n", "", "is empty"),
    ],
)
def test_a_changelog_without_the_entry_is_refused(
    old: str, new: str, says: str, check: Check, tmp_path: Path
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGES.replace(old, new), encoding="utf-8")
    refuse(check("v1.2.0"), says)


def test_a_package_without_a_version_is_refused(check: Check, tmp_path: Path) -> None:
    (tmp_path / "runtime" / "histoseg" / "__init__.py").write_text("", encoding="utf-8")
    refuse(check("v1.2.0"), "no __version__")


def test_no_tag_is_a_usage_error(check: Check) -> None:
    assert check().returncode == 2


def test_this_changelog_is_read(tmp_path: Path) -> None:
    """The first entry is either what comes next, or the version of the package."""
    from histoseg import __version__

    names = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert names[0] in ("Unreleased", __version__)
    assert len(set(names)) == len(names)


def read_steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_sound(path: Path) -> None:
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert ("uses" in job) != ("runs-on" in job)
        assert set([job["needs"]] if "needs" in job else []) <= workflow["jobs"].keys()
    for step in read_steps(workflow):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.0.0"))
        script = step.get("run", "").split(" ")[0]
        assert not script.startswith(".") or (ROOT / script).stat().st_mode & 0o100
    assert "://" not in path.read_text(encoding="utf-8")


def test_every_python_that_the_package_claims_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    jobs = read_yaml(ROOT / ".github" / "workflows" / "check.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == claimed
    assert jobs["wheel"]["strategy"]["matrix"]["onnxruntime"] == ["oldest", "newest"]
    assert {claimed[0], claimed[-1]} == set(jobs["wheel"]["strategy"]["matrix"]["python"])


def test_make_targets_of_the_workflows_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in WORKFLOWS:
        for step in read_steps(read_yaml(path)):
            for target in re.findall(r"^make (\w+)$", step.get("run", ""), re.MULTILINE):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("words", [[], ["wheel.whl"], ["wheel.whl", "latest"]])
def test_the_wheel_is_tested_with_three_choices_of_version_alone(words: list[str]) -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "test_wheel", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "usage: .ci/test_wheel WHEEL pinned|oldest|newest\n")
