"""Pages that need no log-in: start page, registration, language, and health check."""

from __future__ import annotations

import bottle

from fedsim import __version__
from fedsim.store.records import UserState
from fedsim.web import accounts, passwords
from fedsim.web.errors import Fault
from fedsim.web.i18n import LANGUAGES
from fedsim.web.pages.login import require_secure_transport
from fedsim.web.rendering import Renderer
from fedsim.web.request import LANGUAGE_COOKIE, WebRequest
from fedsim.web.responses import json_response, page_response, safe_next, see_other
from fedsim.web.routes import Access, Route


class PublicPages:
    """The public pages."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/", self.home, Access.ANYONE),
            Route("GET", "/register", self.register_form, Access.ANYONE),
            Route("POST", "/register", self.register, Access.ANYONE),
            Route("POST", "/language", self.language, Access.ANYONE, always=True),
            Route("GET", "/healthz", self.healthz, Access.ANYONE, always=True),
        ]

    def home(self, request: WebRequest) -> str:
        """The start page."""
        return self._page(request, "home.html")

    def register_form(self, request: WebRequest) -> str | bottle.HTTPResponse:
        """The registration form."""
        require_secure_transport(request)
        return self._register(request)

    def register(self, request: WebRequest) -> str | bottle.HTTPResponse:
        """Create an account; if registration is open, the user is logged in immediately."""
        require_secure_transport(request)
        name, password = request.form.get("name", ""), request.form.get("password", "")
        try:
            user = accounts.register(
                request.store,
                request.config,
                name,
                password,
                address=request.address,
                language=request.language,
                now=request.now,
            )
        except Fault as fault:
            return self._register(request, fault, name)
        if user.state is UserState.WAITING:
            return self._page(request, "registered.html", name=user.name)
        request.authentication.begin_session(user)
        return see_other("/tasks")

    def _register(self, request: WebRequest, fault: Fault | None = None, name: str = "") -> bottle.HTTPResponse:
        page = self._page(
            request,
            "register.html",
            problems=fault.problems if fault else {},
            error=fault.text if fault else None,
            name=name,
            registration=request.config.registration,
            least=passwords.MIN_CHARACTERS,
        )
        return page_response(page, fault)

    def language(self, request: WebRequest) -> bottle.HTTPResponse:
        """Change the language of this browser and, if logged in, of the user."""
        wanted = request.form.get("language", "")
        if wanted in LANGUAGES:
            request.set_cookie(LANGUAGE_COOKIE, wanted)
            if request.user is not None:
                request.store.users.set_language(request.user.id, wanted)
        return see_other(safe_next(request.form.get("next", "/")))

    def healthz(self, request: WebRequest) -> bottle.HTTPResponse:
        """The health check: 200 if the database answers, otherwise 503 from `Unavailable`."""
        request.store.check()
        return json_response({"status": "ok", "database": "ok", "version": __version__})
