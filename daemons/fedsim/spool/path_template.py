"""Path templates: one text from which both the path of a file and the parser of such paths derive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

_NUMBER: Final = r"\d{6,7}"
FIELDS: Final = {
    "sender": r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}?",
    "task": r"[0-9a-f]{32}",
    "round": _NUMBER,
    "chunk": _NUMBER,
    "client": _NUMBER,
    "part": r"data|label",
    "phase": r"[A-Za-z0-9_]{1,64}",
}
"""The fields of templates and the text that each can have. Numbers are written with at least six digits."""

_TOKEN: Final = re.compile(r"\{(\w+)\}|(\[)|(\])|([^{}\[\]]+)")


class PathTemplate:
    """A relative path with `{fields}`; what is in `[brackets]` is omitted if its fields have no value.

    Attributes:
        text: the template.
        required: the fields outside brackets, except `sender`.
        optional: the fields in brackets.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        required: set[str] = set()
        optional: set[str] = set()
        pattern, in_brackets = "", False
        for name, opens, closes, literal in _TOKEN.findall(text):
            if name:
                (optional if in_brackets else required).add(name)
                pattern += f"(?P<{name}>{FIELDS[name]})"
            elif opens or closes:
                in_brackets = bool(opens)
                pattern += "(?:" if opens else ")?"
            else:
                pattern += re.escape(literal)
        self.has_sender = "sender" in required
        self.required = frozenset(required - {"sender"})
        self.optional = frozenset(optional)
        self._pattern = re.compile(pattern)

    def format(self, values: Mapping[str, object]) -> PurePosixPath:
        """The path with these values of the fields; optional ones may be missing or None."""
        text = self.text
        for name in self.optional:
            if values.get(name) is None:
                text = re.sub(rf"\[[^\]]*\{{{name}\}}[^\]]*\]", "", text)
        return PurePosixPath(_fill(text.replace("[", "").replace("]", ""), values))

    def parse(self, path: str) -> dict[str, str | int] | None:
        """The values of the fields in a path; None if it is not a path of this template."""
        match = self._pattern.fullmatch(path)
        if match is None:
            return None
        found = {name: value for name, value in match.groupdict().items() if value is not None}
        return {name: int(value) if FIELDS[name] is _NUMBER else value for name, value in found.items()}

    def folder(self, values: Mapping[str, object]) -> PurePosixPath:
        """The deepest folder that contains every file with these values; fields that are missing or None can be any."""
        folder = PurePosixPath()
        for part in self.text.split("/")[:-1]:
            if any(values.get(name) is None for name in re.findall(r"\{(\w+)\}", part)):
                break
            folder /= _fill(part, values)
        return folder


def _fill(text: str, values: Mapping[str, object]) -> str:
    def value(match: re.Match[str]) -> str:
        given = values[match[1]]
        return f"{given:06d}" if FIELDS[match[1]] is _NUMBER else str(given)

    return re.sub(r"\{(\w+)\}", value, text)
