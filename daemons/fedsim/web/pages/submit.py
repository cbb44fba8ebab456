"""Submitting a task: nothing typed is lost, whatever is wrong with it or happened meanwhile; one form is one task."""

from __future__ import annotations

import bottle

from fedsim.web import forms, submissions
from fedsim.web.errors import Fault
from fedsim.web.i18n import tr
from fedsim.web.pages.login import show_login
from fedsim.web.pages.task_form import show_task_form
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import see_other
from fedsim.web.routes import Route

BIGGEST = 2**63 - 1


class SubmitPages:
    """The form for a new task, or for one again with changes."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """What these pages answer."""
        return [
            Route("GET", "/tasks/new", self.form),
            Route("POST", "/tasks/new", self.submit, outdated=self.outdated),
        ]

    def form(self, request: WebRequest) -> bottle.HTTPResponse:
        """The form, with the defaults or with the settings of the task named by `from`."""
        source = request.query_number(forms.SOURCE, None, least=1, most=BIGGEST)
        if source is None:
            return show_task_form(self._renderer, request, {})
        values = forms.filled(submissions.task_of(request, source).settings)
        return show_task_form(self._renderer, request, values | {forms.SOURCE: str(source)})

    def submit(self, request: WebRequest) -> bottle.HTTPResponse:
        """Submit what was typed; with problems, the form comes back as it was typed."""
        try:
            made = submissions.submit(request, forms.given(request.form), request.form.get(forms.SUBMISSION, ""))
        except Fault as fault:
            if fault.status != 422:
                raise
            return show_task_form(self._renderer, request, forms.kept(request.form), fault=fault)
        return see_other(f"/tasks/{made.task.number}")

    def outdated(self, request: WebRequest) -> bottle.HTTPResponse:
        """The form was opened in a session that has ended: it waits behind the log-in, or comes back at once."""
        typed = forms.kept(request.form)
        if request.user is None:
            text = tr("Your session has ended. Log in to go on: what you typed is kept, and nothing was submitted yet.")
            return show_login(self._renderer, request, kept=typed, fault=Fault(403, text))
        text = tr(
            "You have logged in anew since this form was opened. Nothing was submitted yet: look it over once more."
        )
        return show_task_form(self._renderer, request, typed, fault=Fault(403, text))
