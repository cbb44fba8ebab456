"""How programs end: every outcome has its exit code and a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import click
import pytest

from fedsim.command import EXIT_CODES, TRACEBACK, run_command
from fedsim.errors import (
    EX_INTERRUPTED,
    EX_SOFTWARE,
    EX_USAGE,
    BadInput,
    FedsimError,
)

PROGRAMS = [
    "fedsim",
    "fedsim-server",
    "fedsim-receiver",
    "fedsim-client",
    "fedsim-web",
    "fedsim-migrate",
    "fedsim-ca",
    "fedsim-fleet",
    "fedsim-gather",
]


def _run(action: Callable[[], Any]) -> int:
    return run_command(click.Command("it", callback=action), "it", [])


def _raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (BadInput("the table is empty"), 65, "Error: the table is empty"),
        (FedsimError("the web refused"), 70, "Error: the web refused"),
        (
            TypeError("no such thing"),
            EX_SOFTWARE,
            "Error: it failed because of a fault inside: TypeError: no such thing;",
        ),
        (AssertionError(), EX_SOFTWARE, "Error: it failed because of a fault inside: AssertionError;"),
        (FileNotFoundError(2, "No such file", "x"), EX_SOFTWARE, "Error: it failed because of a fault inside: File"),
        (KeyboardInterrupt(), EX_INTERRUPTED, "Error: Interrupted."),
        (click.UsageError("no such option"), EX_USAGE, "Error: no such option"),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code_of_its_own(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(_raising(error)) == code
    assert code in EXIT_CODES
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told


def test_a_traceback_is_shown_to_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    assert _run(_raising(TypeError("no such thing"))) == EX_SOFTWARE
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_answers_a_wrong_command_line_with_a_traceback(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed,) = entry_points(group="console_scripts", name=program)
    monkeypatch.setattr(sys, "argv", [program, "--no-such-option"])
    assert installed.load()() == EX_USAGE
    told = capsys.readouterr().err
    assert "--no-such-option" in told
    assert "Traceback" not in told
