"""Runs the command line of every program of fedsim: each outcome becomes an exit code, and each fault a sentence.

A traceback is shown only if `FEDSIM_TRACEBACK` is set.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import click

from fedsim.errors import (
    EX_CONFIG,
    EX_DATA,
    EX_FAILED,
    EX_INTERRUPTED,
    EX_IO,
    EX_NO_PERMISSION,
    EX_NOINPUT,
    EX_OK,
    EX_PIPE,
    EX_SOFTWARE,
    EX_TRY_AGAIN,
    EX_UNAVAILABLE,
    EX_USAGE,
    FedsimError,
)
from fedsim.text import plain

TRACEBACK = "FEDSIM_TRACEBACK"
EXIT_CODES = {
    EX_OK: "done; with watch: the task is completed",
    EX_FAILED: "the watched task failed or was stopped",
    EX_USAGE: "the command line is wrong",
    EX_DATA: "the input is refused: settings, data, or a task that is not in the right state",
    EX_NOINPUT: "there is no such task, round, user or file",
    EX_UNAVAILABLE: "the web or the database cannot be reached",
    EX_SOFTWARE: f"a fault inside fedsim; {TRACEBACK}=1 shows where",
    EX_IO: "standard output cannot be written: it is closed, or its disk is full",
    EX_TRY_AGAIN: "not now: try again later",
    EX_NO_PERMISSION: "not logged in, or not allowed",
    EX_CONFIG: "a configuration file or a variable of the environment is wrong",
    EX_INTERRUPTED: "interrupted, or not confirmed",
    EX_PIPE: "the reader of standard output ended before the command did",
}
ANY_PROGRAM = {EX_SOFTWARE, EX_IO, EX_INTERRUPTED, EX_PIPE}
"""The exit codes of every program."""


def exit_codes(*codes: int) -> str:
    """The text for `--help` on these exit codes and those of every program."""
    shown = {code: meaning for code, meaning in EXIT_CODES.items() if code in {*codes, *ANY_PROGRAM}}
    return "\b\nExit codes:\n" + "\n".join(f"  {code:3}  {meaning}" for code, meaning in shown.items())


EPILOG = exit_codes(*EXIT_CODES)


@dataclass
class State:
    """What `run_command` must know of the command that ran, also when it failed or its output was not read."""

    as_json: bool = False
    code: int = EX_PIPE


_output_errors: list[OSError] = []


class _StandardOutput(io.FileIO):
    """Notes its errors, to tell a full disk below standard output from one below a file that a command writes."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            _output_errors.append(error)
            raise


def run_command(
    command: click.Command, name: str, arguments: Sequence[str] | None = None, *, result_is_printed: bool = True
) -> int:
    """Run a command line (None: this process's own) of the program `name`; returns the exit code.

    Output that cannot be written is a failure if the command's result is what it prints.
    """
    state = State()
    closed = _open_streams()
    try:
        with _output_written():
            state.code = _run(state, command, name, arguments)
    except OSError as error:
        if result_is_printed:
            return _failed(state, f"Standard output cannot be written: {error.strerror or error}", EX_IO, written=False)
    if result_is_printed and closed and state.code == EX_OK:
        return _failed(state, "Standard output is closed: what the command printed is lost", EX_IO, written=False)
    return state.code


def _open_streams() -> bool:
    """Make both streams print every text; returns whether standard output was closed."""
    closed = sys.stdout is None
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # a file that is opened later must not get its number
            with suppress(OSError):
                os.fstat(number)
                continue
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            if name == "stdout" and stream is sys.__stdout__:
                with suppress(OSError):
                    stream.flush()
                buffer = io.BufferedWriter(_StandardOutput(number, "w", closefd=False))
                stream = io.TextIOWrapper(buffer, stream.encoding, line_buffering=stream.line_buffering)
                for standard in ("stdout", "__stdout__"):
                    setattr(sys, standard, stream)
            stream.reconfigure(errors="replace")  # a terminal of another encoding, a file name that is not UTF-8
    return closed


def _run(state: State, command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False, obj=state)
    except click.ClickException as error:
        error.show()
        return _failed(state, error.format_message(), EX_USAGE, shown=True)
    except (click.Abort, KeyboardInterrupt):
        return _failed(state, "Interrupted.", EX_INTERRUPTED)
    except FedsimError as error:
        return _failed(state, str(error), error.exit_code, getattr(error, "problems", None))
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error in _output_errors:
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        advice = f"set {TRACEBACK}=1 to see where, and report it"
        return _failed(state, f"{name} failed because of a fault inside: {reason}; {advice}", EX_SOFTWARE)
    return result if isinstance(result, int) else EX_OK


def _failed(
    state: State, message: str, code: int, problems: object = None, *, shown: bool = False, written: bool = True
) -> int:
    if not shown:
        lines = [plain(line) for line in message.splitlines()] or [""]
        with suppress(OSError):
            click.echo("\n".join([f"Error: {lines[0]}", *lines[1:]]), err=True)
    if state.as_json and written:
        document = {"error": message, "problems": problems or {}, "exit_code": code}
        with _output_written():
            click.echo(json.dumps(document, ensure_ascii=False))
    return code


@contextmanager
def _output_written() -> Iterator[None]:
    """Print what is buffered. A reader that has gone (`fedsim tasks --json | head`) wants no more, and no complaint."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            if sys.__stdout__ is not None:  # click replaces one that broke
                sys.__stdout__.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError:
        _discard_output()
        raise


def _discard_output() -> None:
    """Let what is buffered go nowhere, so that Python can end without another error."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
