"""How a command line ends: every error becomes an exit code that scripts can rely on, and a document with `--json`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from fedsim.cli.options import State
from fedsim.cli.output import plain
from fedsim.errors import EX_OK, EX_USAGE, FedsimError

EX_INTERRUPTED = 130


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line (None: this process's own) of the program `name`; returns the exit code."""
    state = State()
    with _reader_may_go():
        state.code = _run(state, command, name, arguments)
    return state.code


def _run(state: State, command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False, obj=state)
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
