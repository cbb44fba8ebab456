"""What a request may end with instead of an answer, and problems of settings in words that people understand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedsim.errors import BadInput
from fedsim.settings import SettingsError
from fedsim.web.i18n import Text, tr

# field -> what would be right there
Problems = dict[str, Text]


class Fault(BadInput):
    """A request that cannot be answered: the HTTP status, and a text that says what to do."""

    def __init__(
        self, status: int, text: Text, *, problems: Problems | None = None, retry_after: int | None = None
    ) -> None:
        self.status = status
        self.text = text
        self.problems = problems or {}
        self.retry_after = retry_after
        super().__init__(str(text))


_STATUS_TEXTS = {
    400: tr("The request could not be understood."),
    401: tr("Log in first."),
    403: tr("You may not do this."),
    404: tr("There is nothing here. It may have been deleted, or it may belong to somebody else."),
    405: tr("This address does not take that method."),
    410: tr("This is no longer kept."),
    411: tr("Say the length of the request's body (Content-Length)."),
    413: tr("The request is too large: at most 64 KiB are taken."),
    415: tr("This kind of content is not taken here."),
    416: tr("The file has no such range."),
    429: tr("Too many attempts."),
    500: tr("Something went wrong here, not with your request. It has been logged."),
    503: tr("The database does not answer. Try again in a moment."),
}
_STATUS_TITLES = {
    400: tr("Bad request"),
    401: tr("Not logged in"),
    403: tr("Not allowed"),
    404: tr("Not found"),
    405: tr("Method not allowed"),
    410: tr("Gone"),
    411: tr("Length required"),
    413: tr("Too large"),
    415: tr("Unsupported content"),
    416: tr("No such range"),
    429: tr("Too many attempts"),
    500: tr("Internal error"),
    503: tr("Not available"),
}


def status_text(status: int) -> Text:
    """What a status means for the person."""
    return _STATUS_TEXTS.get(status, _STATUS_TEXTS[400 if status < 500 else 500])


def status_title(status: int) -> Text:
    """A status in two words."""
    return _STATUS_TITLES.get(status, _STATUS_TITLES[400 if status < 500 else 500])


def not_found() -> Fault:
    """For what is not there and for what is somebody else's: the answer must not tell which."""
    return Fault(404, status_text(404))


Explain = Callable[[Mapping[str, Any]], Text]
# pydantic's error type -> its meaning in plain words
_EXPLAIN: dict[str, Explain] = {
    "greater_than_equal": lambda c: tr("must be at least %(limit)s", limit=f"{c['ge']:.12g}"),
    "greater_than": lambda c: tr("must be greater than %(limit)s", limit=f"{c['gt']:.12g}"),
    "less_than_equal": lambda c: tr("must be at most %(limit)s", limit=f"{c['le']:.12g}"),
    "less_than": lambda c: tr("must be less than %(limit)s", limit=f"{c['lt']:.12g}"),
    "int_parsing": lambda _: tr("must be a whole number"),
    "int_type": lambda _: tr("must be a whole number"),
    "int_from_float": lambda _: tr("must be a whole number"),
    "int_parsing_size": lambda _: tr("is too large a number"),
    "float_parsing": lambda _: tr("must be a number"),
    "float_type": lambda _: tr("must be a number"),
    "finite_number": lambda _: tr("must be a finite number"),
    "string_type": lambda _: tr("must be text"),
    "string_unicode": lambda _: tr("must be text"),
    "string_too_long": lambda c: tr("must have at most %(limit)s characters", limit=c["max_length"]),
    "string_pattern_mismatch": lambda _: tr(
        "must be a name of at most 64 letters, digits, “_”, “.” or “-”, beginning with a letter or digit"
    ),
    "literal_error": lambda c: tr(
        "must be one of %(choices)s", choices=str(c["expected"]).replace(" or ", ", ").replace("'", "")
    ),
    "missing": lambda _: tr("is missing"),
}


def explain_settings(error: SettingsError) -> Problems:
    """Each problem of settings in plain words that can be translated."""
    problems: Problems = {}
    for field, message in error.problems.items():
        kind, context = error.kinds.get(field, ("", {}))
        explain = _EXPLAIN.get(kind)
        # Messages of fedsim's own checks are complete sentences already.
        problems[field] = explain(context) if explain else tr("%(message)s", message=message)
    return problems
