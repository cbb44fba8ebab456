"""Log-in and log-out. The input of a task form that was interrupted by a log-in is restored afterwards."""

from __future__ import annotations

import bottle

from fedsim.log import get_logger
from fedsim.store.records import User
from fedsim.web import accounts, forms, second_factor
from fedsim.web.authentication import BROWSER_COOKIE
from fedsim.web.errors import Fault, not_found
from fedsim.web.i18n import tr
from fedsim.web.openid import ATTEMPT_SECONDS, CALLBACK, Attempt, OpenIdProvider
from fedsim.web.pages.task_form import show_task_form
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import page_response, safe_next, see_other
from fedsim.web.routes import Access, Route

OPENID_COOKIE = "fedsim_openid"


class LoginPages:
    """The pages for logging in and out."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/login", self.form, Access.ANYONE, always=True),
            Route("POST", "/login", self.log_in, Access.ANYONE, outdated=self.outdated, always=True),
            Route("POST", "/login/code", self.check_code, Access.ANYONE, outdated=self.outdated, always=True),
            Route("GET", "/login/openid", self.begin_openid, Access.ANYONE, always=True),
            Route("GET", CALLBACK, self.finish_openid, Access.ANYONE, always=True),
            Route("POST", "/logout", self.log_out, Access.ANYONE, always=True),
        ]

    def form(self, request: WebRequest) -> bottle.HTTPResponse:
        """The log-in form."""
        return show_login(self._renderer, request, wanted=request.query.get("next", "/tasks"))

    def log_in(self, request: WebRequest) -> bottle.HTTPResponse:
        """Check name and password; start a session with a new id, or ask for the code of the second factor."""
        require_secure_transport(request)
        name, password = request.form.get("name", ""), request.form.get("password", "")
        try:
            user = accounts.log_in(
                request.store,
                request.config,
                name,
                password,
                address=request.address,
                now=request.now,
                mark=request.cookie(BROWSER_COOKIE),
            )
        except Fault as fault:
            return self._again(request, fault)
        if user.totp_secret is not None:
            return self._ask_for_code(request, second_factor.make_ticket(user, request.now))
        return self._begin(request, user)

    def check_code(self, request: WebRequest) -> bottle.HTTPResponse:
        """Check the code of the second factor, after the password, and start a session with a new id."""
        require_secure_transport(request)
        ticket, code = request.form.get("ticket", ""), request.form.get("code", "")
        try:
            user = second_factor.user_of_ticket(request.store, ticket, request.now)
        except Fault as fault:
            return self._again(request, fault)
        try:
            second_factor.check_code(
                request.store, user, user.totp_secret or "", code, address=request.address, now=request.now
            )
        except Fault as fault:
            return self._ask_for_code(request, ticket, fault)
        get_logger().info("logged_in", user=user.name, address=request.address, factors="password, code")
        return self._begin(request, user)

    def begin_openid(self, request: WebRequest) -> bottle.HTTPResponse:
        """Send the browser to the provider of OpenID Connect."""
        provider, wanted = _provider(request), request.query.get("next", "/tasks")
        if not accounts.same_secret(request.query.get("csrf", ""), request.csrf_token):
            return show_login(self._renderer, request, wanted=wanted)  # another site's link logs no one in by itself
        try:
            address, attempt = provider.begin(safe_next(wanted))
        except Fault as fault:
            return show_login(self._renderer, request, fault=fault)
        request.set_cookie(OPENID_COOKIE, attempt.cookie(), ATTEMPT_SECONDS)
        return see_other(address)

    def finish_openid(self, request: WebRequest) -> bottle.HTTPResponse:
        """The provider has sent the browser back: log the user in whom it confirms."""
        provider, config = _provider(request), request.config.openid
        attempt = Attempt.of_cookie(request.cookie(OPENID_COOKIE))
        request.set_cookie(OPENID_COOKIE, "")
        state, code = request.query.get("state", ""), request.query.get("code", "")
        if attempt is None or config is None or not accounts.same_secret(state, attempt.state) or not code:
            refused = Fault(403, tr("The provider did not confirm who you are. Try again."))
            return show_login(self._renderer, request, fault=refused)
        try:
            person = provider.finish(attempt, code, request.now)
            user = accounts.log_in_by_openid(request.store, config, person, language=request.language, now=request.now)
        except Fault as fault:
            return show_login(self._renderer, request, fault=fault)
        request.authentication.begin_session(user)
        return see_other(safe_next(attempt.wanted))

    def _begin(self, request: WebRequest, user: User) -> bottle.HTTPResponse:
        request.authentication.begin_session(user)
        if typed := forms.typed_values(request.form, forms.CARRIED_PREFIX):
            notice = tr("Your input has been restored. Nothing has been submitted yet.")
            return show_task_form(self._renderer, request, typed, notice=notice)
        return see_other(safe_next(request.form.get("next", "/tasks")))

    def _ask_for_code(self, request: WebRequest, ticket: str, fault: Fault | None = None) -> bottle.HTTPResponse:
        kept = forms.typed_values(request.form, forms.CARRIED_PREFIX)
        page = self._renderer.page(
            request,
            "login_code.html",
            error=fault.text if fault else None,
            ticket=ticket,
            next=safe_next(request.form.get("next", "/tasks")),
            kept={forms.CARRIED_PREFIX + field: value for field, value in kept.items()},
        )
        return page_response(page, fault)

    def outdated(self, request: WebRequest) -> bottle.HTTPResponse:
        """The cookie of the page has expired."""
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
        user = request.user
        request.authentication.end_session()
        get_logger().info("logged_out", user=user.name if user else None, address=request.address)
        response = see_other("/")
        if request.encrypted:  # browsers act on it only then, and warn otherwise
            response.set_header("Clear-Site-Data", '"cache", "storage"')
        return response


def _provider(request: WebRequest) -> OpenIdProvider:
    if request.site.openid is None:
        raise not_found()
    require_secure_transport(request)
    return request.site.openid


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
        openid=request.config.openid.label if request.config.openid else None,
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
