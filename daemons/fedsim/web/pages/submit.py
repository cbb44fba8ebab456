"""Submission of a task: input is never lost, and repeated submissions of one form create only one task."""

from __future__ import annotations

import bottle

from fedsim.web import forms, submissions
from fedsim.web.catalogue import check_settings, read_catalogue
from fedsim.web.errors import Fault
from fedsim.web.i18n import tr
from fedsim.web.pages.login import show_login
from fedsim.web.pages.task_form import show_task_form
from fedsim.web.partitions import partition_of_settings
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import see_other
from fedsim.web.routes import Route

BIGGEST = 2**63 - 1
MOST_DIGITS = 19


class SubmitPages:
    """The form for a new task, or for repeating a task with changes."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/tasks/new", self.form),
            Route("POST", "/tasks/new", self.submit, outdated=self.outdated),
        ]

    def form(self, request: WebRequest) -> bottle.HTTPResponse:
        """The form with the defaults, or with the settings of the task `from`."""
        source = request.query_number(forms.SOURCE, None, least=1, most=BIGGEST)
        if source is None:
            return show_task_form(self._renderer, request, {})
        values = forms.form_values(submissions.task_of(request, source).settings)
        return show_task_form(self._renderer, request, values | {forms.SOURCE: str(source)})

    def submit(self, request: WebRequest) -> bottle.HTTPResponse:
        """Submit the form, or with `preview` show its partition; if there are problems, the input is shown again."""
        try:
            if forms.PREVIEW in request.form:
                return self._preview(request)
            key = request.form.get(forms.SUBMISSION, "")
            source = request.form.get(forms.SOURCE, "")
            repeats = int(source) if source.isascii() and source.isdigit() and len(source) < MOST_DIGITS else None
            made = submissions.submit(request, forms.settings_from(request.form), key, repeats=repeats)
        except Fault as fault:
            if fault.status != 422:
                raise
            return show_task_form(self._renderer, request, forms.typed_values(request.form), fault=fault)
        return see_other(f"/tasks/{made.task.number}")

    def _preview(self, request: WebRequest) -> bottle.HTTPResponse:
        settings, _ = check_settings(forms.settings_from(request.form), read_catalogue(request.site))
        shown = partition_of_settings(request, settings)
        return show_task_form(self._renderer, request, forms.typed_values(request.form), partition=shown)

    def outdated(self, request: WebRequest) -> bottle.HTTPResponse:
        """The form was opened in a session that has ended: show it again, after a log-in if necessary."""
        typed = forms.typed_values(request.form)
        if request.user is None:
            text = tr(
                "Your session has expired. Log in to continue: your input is kept, and nothing has been submitted yet."
            )
            return show_login(self._renderer, request, kept=typed, fault=Fault(403, text))
        text = tr(
            "You have logged in again since this form was opened. "
            "Nothing has been submitted yet: please check your input."
        )
        return show_task_form(self._renderer, request, typed, fault=Fault(403, text))
