"""The user's own page: language, password, and tokens for the JSON API."""

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
    """The pages of the user's profile."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/profile", self.profile),
            Route("POST", "/profile/password", self.change_password),
            Route("POST", "/profile/tokens", self.make_token),
            Route("POST", "/profile/tokens/<token_id:int>/delete", self.delete_token),
        ]

    def profile(self, request: WebRequest) -> bottle.HTTPResponse:
        """The profile page."""
        return self._show(request)

    def change_password(self, request: WebRequest) -> bottle.HTTPResponse:
        """Change the password: all other browsers are logged out, and all tokens are revoked."""
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
            request, done=tr("The password was changed. Other browsers were logged out, and your tokens were revoked.")
        )

    def make_token(self, request: WebRequest) -> bottle.HTTPResponse:
        """Create a token, which is shown only once."""
        label = request.form.get("label", "")
        try:
            secret, _ = accounts.make_token(request.store, request.authenticated_user, label, now=request.now)
        except Fault as fault:
            return self._show(request, fault=fault)
        return self._show(request, secret=secret)

    def delete_token(self, request: WebRequest, token_id: int) -> bottle.HTTPResponse:
        """Revoke a token."""
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
