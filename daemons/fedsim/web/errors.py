"""Errors of requests, and the problems of settings as translatable texts."""

from __future__ import annotations

from fedsim.errors import BadInput
from fedsim.problems import wording
from fedsim.settings import SettingsError
from fedsim.web.i18n import Text, tr

# field -> what is wrong with it
Problems = dict[str, Text]


class Fault(BadInput):
    """A request that fails with an HTTP status, and a text that says what to do."""

    def __init__(
        self,
        status: int,
        text: Text,
        *,
        problems: Problems | None = None,
        retry_after: int | None = None,
        forbidden: bool = False,
    ) -> None:
        self.status = status
        self.text = text
        self.problems = problems or {}
        self.retry_after = retry_after
        self.forbidden = forbidden  # logged as a refusal, whatever the status says
        super().__init__(str(text))


_STATUS_TEXTS = {
    400: tr("The request could not be understood."),
    401: tr("Log in first."),
    403: tr("You do not have permission to do this."),
    404: tr("Nothing was found here. It may have been deleted, or it may belong to another user."),
    405: tr("This address does not support that method."),
    410: tr("This is no longer available."),
    411: tr("Specify the length of the request's body (Content-Length)."),
    413: tr("The request is too large: the limit is 64 KiB."),
    415: tr("This content type is not supported."),
    416: tr("The requested range is not in the file."),
    429: tr("Too many attempts."),
    500: tr("An internal error occurred. It has been logged."),
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
    """What a status means to the user."""
    return _STATUS_TEXTS.get(status, _STATUS_TEXTS[400 if status < 500 else 500])


def status_title(status: int) -> Text:
    """A short title of a status."""
    return _STATUS_TITLES.get(status, _STATUS_TITLES[400 if status < 500 else 500])


def not_found(*, forbidden: bool = False) -> Fault:
    """The same error for missing objects and for those of other users, which must not be distinguishable.

    `forbidden`: it is another user's; this is logged.
    """
    return Fault(404, status_text(404), forbidden=forbidden)


def explain_settings(error: SettingsError) -> Problems:
    """Turn each problem of settings into a translatable text."""
    problems: Problems = {}
    for field, message in error.problems.items():
        kind, context = error.kinds.get(field, ("", {}))
        text, parameters = wording(kind, context) if kind else ("", {})
        # Messages of fedsim's own checks are shown as they are.
        problems[field] = Text(text, parameters) if kind else tr("%(message)s", message=message)
    return problems
