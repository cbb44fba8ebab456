"""Output of commands: tables and sentences for people, or one JSON document for programs.

Text from other users (a title, a reason) is printed without control characters, so that it cannot manipulate the
terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.text import plain as plain  # noqa: PLC0414 - part of how commands print

# Lines are not wrapped if the output is not a terminal.
PIPE_WIDTH = 1000
NONE = "–"


class Output:
    """Prints results to standard output, and everything else to standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    @property
    def talk(self) -> Console:
        """The console for people: standard error if standard output is reserved for the JSON document."""
        return self.err if self.as_json else self.out

    def document(self, value: Any) -> None:
        """Print the JSON document."""
        print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))  # noqa: T201 - what the command is for

    def say(self, text: str) -> None:
        """Print a line."""
        self.talk.print(Text(plain(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a note to standard error."""
        self.err.print(Text(plain(text)), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
        """Print a table; columns named in `numbers` are right-aligned."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, justify="right" if column in numbers else "left", no_wrap=column in numbers)
        for row in rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        self.talk.print(table)


def _console(*, stderr: bool) -> Console:
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def share(value: float | None) -> str:
    """Format a share as a percentage."""
    return NONE if value is None else f"{value:.2%}"


def number(value: float | None, digits: int = 4) -> str:
    """Format a number."""
    return NONE if value is None else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Format a duration in at most two units."""
    total = max(round(seconds), 0)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def moment(at: float | None) -> str:
    """Seconds since the epoch as local time."""
    return NONE if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def size(count: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
