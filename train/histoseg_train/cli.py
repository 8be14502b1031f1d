"""`histoseg-train`: the command group, and how it ends."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from histoseg import __version__
from histoseg.errors import HistosegError
from histoseg_train.commands.evaluate import evaluate
from histoseg_train.commands.fit import fit
from histoseg_train.commands.patches import patches
from histoseg_train.commands.show import show
from histoseg_train.commands.summary import summary


class OneLineErrors(click.Group):
    """A group whose failures are one line: exit 1 for bad input, 130 for Ctrl-C, 143 for SIGTERM."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and turn what it raises into an exit status."""
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except HistosegError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted: what was saved so far is complete.", err=True)
            sys.exit(130)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="histoseg-train")
def main() -> None:
    """Train Keras models that segment tissue."""


main.add_command(fit)
main.add_command(evaluate)
main.add_command(patches)
main.add_command(show)
main.add_command(summary)


def _terminate(_signal: int, _frame: object) -> None:
    click.echo("Terminated: what was saved so far is complete.", err=True)
    sys.exit(143)
