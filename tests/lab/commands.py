"""Runs programs for the laboratory; errors contain the program's output."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence


class CommandError(Exception):
    """A program ended with an error."""


def call(
    command: Sequence[str],
    *,
    seconds: float = 60,
    check: bool = True,
    text: str = "",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `text` as its input.

    Raises:
        CommandError: it ended with an error, or not within `seconds`; with what it said.
    """
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, input=text, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired as late:
        said = b"".join(part for part in (late.stdout, late.stderr) if part).decode(errors="replace")
        raise CommandError(f"{shlex.join(command)}\nhas not ended in {seconds:g} s:\n{said}") from late
    if check and done.returncode:
        raise CommandError(f"{shlex.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done
