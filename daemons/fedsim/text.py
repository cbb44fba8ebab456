"""Text from people and other hosts, made safe for lines, logs and terminals."""

from __future__ import annotations

import unicodedata
from typing import Final

_KEPT_SEPARATOR: Final = "Zs"


def one_line(text: str, most: int) -> str:
    """At most `most` characters in one line, without control, formatting and bidirectional characters."""
    kept = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    return " ".join(kept.split())[:most].rstrip()


def plain(text: object) -> str:
    r"""The text; what is not visible (control characters, line ends, bidirectional marks) becomes `\x1b`, `\u202e`."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if _is_visible(char) else char.encode("unicode_escape").decode("ascii") for char in shown)


def plain_lines(text: str) -> str:
    """As `plain`, line by line: for a traceback, whose lines are the program's but whose last one quotes others."""
    return "\n".join(plain(line.replace("\t", "    ")) for line in text.split("\n"))


def _is_visible(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == _KEPT_SEPARATOR


def rounded(count: int) -> int:
    """The two leading digits of a count, as it is shown of guarded data."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return count // unit * unit
