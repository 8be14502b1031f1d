"""Help that fits a screen, and forgets no option."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from histoseg.helppage import HelpPage


def build(sections: dict | None) -> click.Command:
    @click.command(cls=HelpPage, sections=sections, examples=["do it --often 3"], more="Once more.")
    @click.option("--often", type=click.IntRange(1, 9), default=1, show_default=True, help="How often.")
    @click.option("--kind", type=click.Choice(["a" * 20, "b" * 20]), help="Which.")
    @click.option("--a-name-that-is-longer-than-a-column", help="Seldom.")
    def command(**_: object) -> None:
        """Do it."""
        click.echo("done")

    return command


def show(command: click.Command, flag: str = "--help") -> str:
    done = CliRunner().invoke(command, [flag], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    return done.output


def test_sections_hold_their_options_and_the_others_come_on_request() -> None:
    command = build({"First": ("often", "kind")})
    page, whole = show(command), show(command, "--help-all")
    assert "First:\n  --often N" in page
    assert "--a-name-that" not in page
    assert "Once more." not in page
    assert "Seldom needed:\n" in whole
    for flag in ("--often", "--kind", "--a-name-that-is-longer-than-a-column", "--help-all", "Once more."):
        assert flag in whole
    for text in (page, whole):
        assert "Examples:\n  do it --often 3\n" in text


def test_without_sections_all_options_stand_together() -> None:
    page = show(build(None))
    for flag in ("--often", "--kind", "--a-name-that-is-longer-than-a-column", "--help"):
        assert flag in page
    assert f"--kind NAME  {'a' * 20}, {'b' * 20}: Which." in " ".join(page.split()).replace(
        "--kind NAME ", "--kind NAME  "
    )


@pytest.mark.parametrize("words", [[], ["--often", "2"]])
def test_the_command_itself_runs_as_any_other(words: list[str]) -> None:
    assert CliRunner().invoke(build({"First": ("often",)}), words).output == "done\n"
