"""Log-in and log-out. The input of a task form that was interrupted by a log-in is restored afterwards."""

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
    """The pages for logging in and out."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/login", self.form, Access.ANYONE),
            Route("POST", "/login", self.log_in, Access.ANYONE, outdated=self.outdated),
            Route("POST", "/logout", self.log_out, Access.ANYONE),
        ]

    def form(self, request: WebRequest) -> bottle.HTTPResponse:
        """The log-in form."""
        return show_login(self._renderer, request, wanted=request.query.get("next", "/tasks"))

    def log_in(self, request: WebRequest) -> bottle.HTTPResponse:
        """Check name and password, and start a session with a new id."""
        require_secure_transport(request)
        name, password = request.form.get("name", ""), request.form.get("password", "")
        try:
            user = accounts.log_in(
                request.store, request.config, name, password, address=request.address, now=request.now
            )
        except Fault as fault:
            return self._again(request, fault)
        request.authentication.begin_session(user)
        if typed := forms.typed_values(request.form, forms.CARRIED_PREFIX):
            notice = tr("Your input has been restored. Nothing has been submitted yet.")
            return show_task_form(self._renderer, request, typed, notice=notice)
        return see_other(safe_next(request.form.get("next", "/tasks")))

    def outdated(self, request: WebRequest) -> bottle.HTTPResponse:
        """The page was open for so long that its cookie has expired."""
        return self._again(request, Fault(403, tr("This page was open for too long: log in again.")))

    def _again(self, request: WebRequest, fault: Fault) -> bottle.HTTPResponse:
        return show_login(
            self._renderer,
            request,
            wanted=request.form.get("next", "/tasks"),
            name=request.form.get("name", ""),
            kept=forms.typed_values(request.form, forms.CARRIED_PREFIX),
            fault=fault,
        )

    def log_out(self, request: WebRequest) -> bottle.HTTPResponse:
        """End the session, in the browser and in the database."""
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
    """The log-in page, which leads to the page `wanted`, or to the task form with the input in `kept`."""
    require_secure_transport(request)
    page = renderer.page(
        request,
        "login.html",
        error=fault.text if fault else None,
        name=name,
        next=safe_next(wanted),
        kept={forms.CARRIED_PREFIX + field: value for field, value in (kept or {}).items()},
        registration=request.config.registration,
    )
    return page_response(page, fault)


def require_secure_transport(request: WebRequest) -> None:
    """Refuse a form with a password on a connection where it could be intercepted.

    Raises:
        Fault: 403.
    """
    if not request.may_set_cookies:
        raise Fault(
            403,
            tr(
                "Passwords are accepted over HTTPS only. Open this site with https://, or ask its administrator "
                "(web.yml: secure_cookies)."
            ),
        )
