"""`histoseg-train`: the command group."""

from __future__ import annotations

from typing import NoReturn

import click

from histoseg import __version__
from histoseg.command import run_command
from histoseg_train.commands.evaluate import evaluate
from histoseg_train.commands.fit import fit
from histoseg_train.commands.patches import patches
from histoseg_train.commands.show import show
from histoseg_train.commands.summary import summary


@click.group(
    name="histoseg-train", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="histoseg-train")
def command() -> None:
    """Train Keras models that segment tissue."""


command.add_command(fit)
command.add_command(evaluate)
command.add_command(patches)
command.add_command(show)
command.add_command(summary)


def main() -> NoReturn:
    """Run the command line."""
    run_command(command)
