"""Logging in and out. Whoever was interrupted by it while filling in the task form finds it again as it was typed."""

from __future__ import annotations

import bottle

from fedsim.web import accounts, forms
from fedsim.web.errors import Fault
from fedsim.web.i18n import tr
from fedsim.web.pages.task_form import show_task_form
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import page_response, safe_next, see_other
from fedsim.web.routes import Access, Route


class LoginPages:
    """Log in, log out."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """What these pages answer."""
        return [
            Route("GET", "/login", self.form, Access.ANYONE),
            Route("POST", "/login", self.log_in, Access.ANYONE, outdated=self.outdated),
            Route("POST", "/logout", self.log_out, Access.ANYONE),
        ]

    def form(self, request: WebRequest) -> bottle.HTTPResponse:
        """The form for name and password."""
        return show_login(self._renderer, request, wanted=request.query.get("next", "/tasks"))

    def log_in(self, request: WebRequest) -> bottle.HTTPResponse:
        """Check name and password; the session's id is always a new one."""
        cookies_must_travel(request)
        name, password = request.form.get("name", ""), request.form.get("password", "")
        try:
            user = accounts.log_in(
                request.store, request.config, name, password, address=request.address, now=request.now
            )
        except Fault as fault:
            return self._again(request, fault)
        request.authentication.begin_session(user)
        if typed := forms.kept(request.form, forms.KEPT):
            notice = tr("What you typed is here again. Nothing was submitted yet.")
            return show_task_form(self._renderer, request, typed, notice=notice)
        return see_other(safe_next(request.form.get("next", "/tasks")))

    def outdated(self, request: WebRequest) -> bottle.HTTPResponse:
        """The page was open for so long that its cookie is gone."""
        return self._again(request, Fault(403, tr("This page was open for too long: log in once more.")))

    def _again(self, request: WebRequest, fault: Fault) -> bottle.HTTPResponse:
        return show_login(
            self._renderer,
            request,
            wanted=request.form.get("next", "/tasks"),
            name=request.form.get("name", ""),
            kept=forms.kept(request.form, forms.KEPT),
            fault=fault,
        )

    def log_out(self, request: WebRequest) -> bottle.HTTPResponse:
        """End the session, here and in the database."""
        request.authentication.end_session()
        return see_other("/")


def show_login(
    renderer: Renderer,
    request: WebRequest,
    *,
    wanted: str = "/tasks",
    name: str = "",
    kept: dict[str, str] | None = None,
    fault: Fault | None = None,
) -> bottle.HTTPResponse:
    """The log-in page, which leads to the page `wanted`, or to the task form filled with what is `kept`."""
    cookies_must_travel(request)
    page = renderer.page(
        request,
        "login.html",
        error=fault.text if fault else None,
        name=name,
        next=safe_next(wanted),
        kept={forms.KEPT + field: value for field, value in (kept or {}).items()},
        registration=request.config.registration,
    )
    return page_response(page, fault)


def cookies_must_travel(request: WebRequest) -> None:
    """Refuse to show or take a form with a password where it could be read on its way.

    Raises:
        Fault: 403.
    """
    if not request.may_set_cookies:
        raise Fault(
            403,
            tr(
                "Passwords are taken over HTTPS only. Open this site by https://, or ask its administrator "
                "(web.yml: secure_cookies)."
            ),
        )
