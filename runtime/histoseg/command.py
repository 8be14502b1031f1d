"""What every command line of histoseg shares: one line for each failure, and the exit codes.

0 success, 1 failure, 2 usage, 130 and 143 interrupted by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from histoseg.errors import HistosegError


class Terminated(BaseException):
    """SIGTERM came."""


def run_command(command: click.Command) -> NoReturn:
    """Run a click command and exit: no traceback for what a person can repair."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except HistosegError as error:
        click.echo(f"{command.name}: error: {error}", err=True)
        code = 1
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{command.name}: interrupted", err=True)
        code = 130
    except Terminated:
        click.echo(f"{command.name}: terminated", err=True)
        code = 143
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
