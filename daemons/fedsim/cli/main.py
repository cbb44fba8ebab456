"""The command `fedsim`: its parts, and how every error becomes an exit code that scripts can rely on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from fedsim import __version__
from fedsim.cli.accounts import login, logout
from fedsim.cli.admin import admin
from fedsim.cli.demo import demo
from fedsim.cli.download import download
from fedsim.cli.options import State
from fedsim.cli.output import plain
from fedsim.cli.predict import predict
from fedsim.cli.tasks import delete, rerun, show, stop, submit, tasks
from fedsim.cli.views import nodes, options, rounds
from fedsim.cli.watch import watch
from fedsim.errors import EX_OK, EX_USAGE, FedsimError

EX_INTERRUPTED = 130

EPILOG = """\b
Exit codes:
    0  done; with watch: the task is completed
    1  the watched task failed or was stopped
   64  the command line is wrong
   65  the input is refused: settings, data, or a task that is not in the right state
   66  there is no such task, round, user or file
   69  the web or the database cannot be reached
   70  something went wrong inside
   75  not now: try again later
   77  not logged in, or not allowed
   78  a configuration file is wrong
  130  interrupted, or not confirmed
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Federated learning on the lab's machines.

    Log in once with `fedsim login`; then submit tasks, watch them, and download what they made. `fedsim predict` and
    `fedsim admin` need no web.
    """


for _command in (
    demo,
    login,
    logout,
    submit,
    tasks,
    show,
    watch,
    stop,
    delete,
    rerun,
    download,
    rounds,
    nodes,
    options,
    predict,
    admin,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: this process's own); returns the exit code."""
    state = State()
    with _reader_may_go():
        state.code = _run(state, arguments)
    return state.code


def _run(state: State, arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="fedsim", standalone_mode=False, obj=state)
    except click.ClickException as error:
        error.show()
        return _failed(state, error.format_message(), EX_USAGE, shown=True)
    except click.Abort:
        return _failed(state, "Interrupted.", EX_INTERRUPTED)
    except FedsimError as error:
        return _failed(state, str(error), error.exit_code, getattr(error, "problems", None))
    return result if isinstance(result, int) else EX_OK


def _failed(state: State, message: str, code: int, problems: object = None, *, shown: bool = False) -> int:
    if not shown:
        lines = [plain(line) for line in message.splitlines()] or [""]
        click.echo("\n".join([f"Error: {lines[0]}", *lines[1:]]), err=True)
    if state.as_json:
        document = {"error": message, "problems": problems or {}, "exit_code": code}
        with _reader_may_go():
            click.echo(json.dumps(document, ensure_ascii=False))
    return code


@contextmanager
def _reader_may_go() -> Iterator[None]:
    """Print what is buffered. A reader that has gone (`fedsim tasks --json | head`) wants no more, and no complaint."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            if sys.__stdout__ is not None:  # click replaces one that broke
                sys.__stdout__.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
