"""The visitor's own page: language, password, and tokens for the JSON API."""

from __future__ import annotations

import bottle

from fedsim.web import accounts, passwords
from fedsim.web.errors import Fault, Problems, not_found
from fedsim.web.i18n import Text, tr
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import page_response, see_other
from fedsim.web.routes import Route

BIGGEST = 2**63 - 1


class ProfilePages:
    """What people set for themselves."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """What these pages answer."""
        return [
            Route("GET", "/profile", self.profile),
            Route("POST", "/profile/password", self.change_password),
            Route("POST", "/profile/tokens", self.make_token),
            Route("POST", "/profile/tokens/<token_id:int>/delete", self.delete_token),
        ]

    def profile(self, request: WebRequest) -> bottle.HTTPResponse:
        """The page as it stands."""
        return self._show(request)

    def change_password(self, request: WebRequest) -> bottle.HTTPResponse:
        """A new password: every other browser is logged out and every token ends; this browser stays."""
        old, new = request.form.get("old", ""), request.form.get("new", "")
        try:
            user = accounts.change_password(
                request.store,
                request.config,
                request.authenticated_user,
                old,
                new,
                address=request.address,
                now=request.now,
            )
        except Fault as fault:
            return self._show(request, fault=fault)
        request.authentication.begin_session(user)
        return self._show(
            request, done=tr("The password was changed. Other browsers were logged out, and your tokens have ended.")
        )

    def make_token(self, request: WebRequest) -> bottle.HTTPResponse:
        """A new token, shown this once."""
        label = request.form.get("label", "")
        try:
            secret, _ = accounts.make_token(request.store, request.authenticated_user, label, now=request.now)
        except Fault as fault:
            return self._show(request, fault=fault)
        return self._show(request, secret=secret)

    def delete_token(self, request: WebRequest, token_id: int) -> bottle.HTTPResponse:
        """Make a token worthless."""
        if not 0 < token_id <= BIGGEST or not request.store.tokens.delete(request.authenticated_user.id, token_id):
            raise not_found()
        return see_other("/profile")

    def _show(
        self, request: WebRequest, *, fault: Fault | None = None, secret: str = "", done: Text | None = None
    ) -> bottle.HTTPResponse:
        problems: Problems = fault.problems if fault else {}
        page = self._page(
            request,
            "profile.html",
            tokens=request.store.tokens.of_user(request.authenticated_user.id),
            error=fault.text if fault else None,
            problems=problems,
            secret=secret,
            done=done,
            least=passwords.MIN_CHARACTERS,
        )
        return page_response(page, fault)
