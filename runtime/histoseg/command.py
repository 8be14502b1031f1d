"""What every command line of histoseg shares: one line for each failure, and the exit codes.

0 success, 1 failure, 2 usage, 130 and 143 interrupted by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from histoseg.errors import HistosegError

# Commands that keep what they had done when they are stopped.
RESUMABLE = frozenset({"histoseg-run", "histoseg-train fit"})


class Terminated(BaseException):
    """SIGTERM came."""


class _Interrupted(BaseException):
    """Ctrl-C came; click would begin a line, whatever stderr is."""


def run_command(command: click.Command) -> NoReturn:
    """Run a click command and exit: no traceback for what a person can repair."""
    signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    words = _shield(command)
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        _show_refusal(error, words)
        code = error.exit_code
    except HistosegError as error:
        click.echo(f"{command.name}: error: {error}", err=True)
        code = 1
    except (click.Abort, _Interrupted):
        if sys.stderr.isatty():  # a terminal shows ^C
            click.echo(err=True)
        _say_stopped("interrupted", words)
        code = 130
    except Terminated:
        _say_stopped("terminated", words)
        code = 143
    sys.exit(code if isinstance(code, int) else 0)


def _shield(command: click.Command) -> list[str]:
    """Keep Ctrl-C from click, and return the words that name what runs, once it does."""
    invoke, words = command.invoke, [command.name or ""]

    def invoke_shielded(ctx: click.Context) -> Any:
        try:
            return invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error
        finally:
            words.extend([ctx.invoked_subcommand] if ctx.invoked_subcommand else [])

    command.invoke = invoke_shielded  # type: ignore[method-assign]  # `main` has no other place for it
    return words


def _show_refusal(error: click.ClickException, words: list[str]) -> None:
    """Show in one line what click, or a command, says of its arguments."""
    message = error.format_message()
    if "\n" in message:  # the whole help, of a group that was given no command
        error.show()
        return
    line = f"{words[0]}: error: {message}"
    if isinstance(error, click.UsageError):
        line = f"{line.rstrip('.')}; see {' '.join(words)} --help"
    click.echo(line, err=True)


def _say_stopped(how: str, words: list[str]) -> None:
    advice = "; the same command goes on where it stopped" if " ".join(words) in RESUMABLE else ""
    click.echo(f"{words[0]}: {how}{advice}", err=True)


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM."""
    raise Terminated
