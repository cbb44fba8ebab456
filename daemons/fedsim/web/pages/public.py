"""Pages for everybody: what fedsim is, register, log in and out, the language, and whether the web is well."""

from __future__ import annotations

import bottle

from fedsim import __version__
from fedsim.store.interface import UserState
from fedsim.web import accounts
from fedsim.web.faults import Fault, Problems
from fedsim.web.i18n import LANGUAGES, Text, tr
from fedsim.web.rendering import Renderer
from fedsim.web.responses import json_response, safe_next, see_other
from fedsim.web.routes import Access, Route
from fedsim.web.visit import LANGUAGE_COOKIE, Visit


class PublicPages:
    """Everything that needs no log-in."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """What these pages answer."""
        return [
            Route("GET", "/", self.home, Access.ANYONE),
            Route("GET", "/register", self.register_form, Access.ANYONE),
            Route("POST", "/register", self.register, Access.ANYONE),
            Route("GET", "/login", self.login_form, Access.ANYONE),
            Route("POST", "/login", self.login, Access.ANYONE),
            Route("POST", "/logout", self.logout, Access.ANYONE),
            Route("POST", "/language", self.language, Access.ANYONE),
            Route("GET", "/healthz", self.healthz, Access.ANYONE),
        ]

    def home(self, visit: Visit) -> str:
        """What fedsim is."""
        return self._page(visit, "home.html")

    def register_form(self, visit: Visit) -> str | bottle.HTTPResponse:
        """The form for a new account."""
        _cookies_must_travel(visit)
        return self._register(visit)

    def register(self, visit: Visit) -> str | bottle.HTTPResponse:
        """Make an account; an open registration logs in at once."""
        _cookies_must_travel(visit)
        name, password = visit.form.get("name", ""), visit.form.get("password", "")
        try:
            user = accounts.register(visit.store, visit.config, name, password, language=visit.language, now=visit.now)
        except Fault as fault:
            return self._register(visit, fault, name)
        if user.state is UserState.WAITING:
            return self._page(visit, "registered.html", name=user.name)
        visit.begin_session(user)
        return see_other("/tasks")

    def _register(self, visit: Visit, fault: Fault | None = None, name: str = "") -> bottle.HTTPResponse:
        page = self._page(
            visit,
            "register.html",
            problems=_problems(fault),
            error=_error(fault),
            name=name,
            registration=visit.config.registration,
            least=accounts.MIN_PASSWORD_CHARACTERS,
        )
        return bottle.HTTPResponse(page, status=fault.status if fault else 200)

    def login_form(self, visit: Visit) -> bottle.HTTPResponse:
        """The form for name and password."""
        _cookies_must_travel(visit)
        return self._login(visit, safe_next(visit.query.get("next", "/tasks")))

    def login(self, visit: Visit) -> bottle.HTTPResponse:
        """Check name and password; the session's id is always a new one."""
        _cookies_must_travel(visit)
        name, password = visit.form.get("name", ""), visit.form.get("password", "")
        wanted = safe_next(visit.form.get("next", "/tasks"))
        try:
            user = accounts.log_in(visit.store, visit.config, name, password, address=visit.address, now=visit.now)
        except Fault as fault:
            return self._login(visit, wanted, fault, name)
        visit.begin_session(user)
        return see_other(wanted)

    def _login(self, visit: Visit, wanted: str, fault: Fault | None = None, name: str = "") -> bottle.HTTPResponse:
        page = self._page(
            visit, "login.html", error=_error(fault), name=name, next=wanted, registration=visit.config.registration
        )
        response = bottle.HTTPResponse(page, status=fault.status if fault else 200)
        if fault and fault.retry_after:
            response.set_header("Retry-After", str(fault.retry_after))
        return response

    def logout(self, visit: Visit) -> bottle.HTTPResponse:
        """End the session, here and in the database."""
        visit.end_session()
        return see_other("/")

    def language(self, visit: Visit) -> bottle.HTTPResponse:
        """Switch the language, for this browser and, if somebody is logged in, for them."""
        wanted = visit.form.get("language", "")
        if wanted in LANGUAGES:
            visit.set_cookie(LANGUAGE_COOKIE, wanted)
            if visit.user is not None:
                visit.store.set_language(visit.user.id, wanted)
        return see_other(safe_next(visit.form.get("next", "/")))

    def healthz(self, visit: Visit) -> bottle.HTTPResponse:
        """Whether the database answers; where it does not, the application turns `Unavailable` into 503."""
        visit.store.check()
        return json_response({"status": "ok", "database": "ok", "version": __version__})


def _cookies_must_travel(visit: Visit) -> None:
    if not visit.cookies_travel_safely:
        raise Fault(
            403,
            tr(
                "Passwords are taken over HTTPS only. Open this site by https://, or ask its administrator "
                "(web.yml: secure_cookies)."
            ),
        )


def _problems(fault: Fault | None) -> Problems:
    return fault.problems if fault else {}


def _error(fault: Fault | None) -> Text | None:
    return fault.text if fault else None
