"""Help that fits a screen: options under headings, close together, and examples; seldom ones on request."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click

# What click calls a kind of value, and what a person needs to see of it.
KINDS = {" INTEGER RANGE": " N", " INTEGER": " N", " FLOAT RANGE": " X", " FLOAT": " X"}
# A choice with more letters than this stands in the help's own words.
LONGEST_LEFT = 32
HELP_ALL = "help_all"


class HelpPage(click.Command):
    """A command whose help fits a screen."""

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        examples: Sequence[str] = (),
        more: str = "",
        **settings: Any,
    ) -> None:
        """Take what the page is made of besides what `click.Command` takes.

        Args:
            args: Of `click.Command`.
            sections: Headings, and the parameters below each, in lines: those of one string share a line.
                All parameters when `None`; those in none are told of by `--help-all`.
            examples: Commands.
            more: A paragraph that `--help-all` ends with.
            settings: Of `click.Command`.
        """
        super().__init__(*args, **settings)
        self._sections, self._examples, self._more = sections, tuple(examples), more
        self._seldom_option = _build_help_all() if more or self._list_seldom() else None
        if self._seldom_option:
            self.params.append(self._seldom_option)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section."""
        parameters = {parameter.name or "": parameter for parameter in self.get_params(context)}
        sections = {"Options": list(parameters)}
        if self._sections is not None:
            sections = {heading: [*rows] for heading, rows in self._sections.items()}
        if context.meta.get(_SHOW_ALL) and (seldom := self._list_seldom()):
            sections["Seldom needed"] = seldom
        written = {
            heading: [row for names in rows if (row := _join_records(context, names, parameters))]
            for heading, rows in sections.items()
        }
        if self._seldom_option:
            row = _join_records(context, self._seldom_option.name or "", parameters)
            written[list(written)[-1]] += [row] if row else []
        longest = max(len(left) for rows in written.values() for left, _ in rows)
        width = min(longest, LONGEST_LEFT) + 2
        formatter.write_paragraph()
        for heading, rows in written.items():
            formatter.write(f"{heading}:\n")
            for left, right in rows:
                _write_row(formatter, left, right, width)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and what else there is to say."""
        formatter.write("Examples:\n" + "".join(f"  {line}\n" for line in self._examples))
        if context.meta.get(_SHOW_ALL) and self._more:
            formatter.write_paragraph()
            formatter.write(textwrap.fill(self._more, formatter.width) + "\n")

    def _list_seldom(self) -> list[str]:
        """Return the options that are in no section."""
        if self._sections is None:
            return []
        shown = {name for rows in self._sections.values() for row in rows for name in row.split()}
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        return [option.name for option in options if option.name and option.name not in {*shown, HELP_ALL}]


_SHOW_ALL = "histoseg.helppage.all"


def _build_help_all() -> click.Option:
    def show(context: click.Context, option: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            context.meta[_SHOW_ALL] = True
            click.echo(context.get_help(), color=context.color)
            context.exit()

    return click.Option(
        ["--help-all", HELP_ALL],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the options that are seldom needed, too.",
    )


def _join_records(
    context: click.Context, names: str, parameters: Mapping[str, click.Parameter]
) -> tuple[str, str] | None:
    """Return the flags and the help of options that share a line."""
    found = [parameters[name] for name in names.split() if name in parameters]
    records = [record for parameter in found if (record := _read_record(context, parameter))]
    if not records:
        return None
    return ", ".join(left for left, _ in records), " ".join(right for _, right in records)


def _read_record(context: click.Context, parameter: click.Parameter) -> tuple[str, str] | None:
    """Return flags and help of an option, the kind of its value in a word."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    left, right = record
    for kind, word in KINDS.items():
        left = left.replace(kind, word)
    if len(left) > LONGEST_LEFT and isinstance(parameter.type, click.Choice):
        left = re.sub(r" \[[^]]*\]$", " NAME", left)
        right = f"{', '.join(map(str, parameter.type.choices))}: {right}"
    return left, right


def _write_row(formatter: click.HelpFormatter, left: str, right: str, width: int) -> None:
    lines = textwrap.wrap(right, max(20, formatter.width - width - 2)) or [""]
    if len(left) > width - 2:
        formatter.write(f"  {left}\n")
        left = ""
    for line in lines:
        formatter.write(f"  {left:<{width}}{line}".rstrip() + "\n")
        left = ""
