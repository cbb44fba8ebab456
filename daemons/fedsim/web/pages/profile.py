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

    def profile(self, visit: WebRequest) -> bottle.HTTPResponse:
        """The page as it stands."""
        return self._show(visit)

    def change_password(self, visit: WebRequest) -> bottle.HTTPResponse:
        """A new password: every other browser is logged out and every token ends; this browser stays."""
        old, new = visit.form.get("old", ""), visit.form.get("new", "")
        try:
            user = accounts.change_password(
                visit.store, visit.config, visit.person, old, new, address=visit.address, now=visit.now
            )
        except Fault as fault:
            return self._show(visit, fault=fault)
        visit.begin_session(user)
        return self._show(
            visit, done=tr("The password was changed. Other browsers were logged out, and your tokens have ended.")
        )

    def make_token(self, visit: WebRequest) -> bottle.HTTPResponse:
        """A new token, shown this once."""
        label = visit.form.get("label", "")
        try:
            secret, _ = accounts.make_token(visit.store, visit.person, label, now=visit.now)
        except Fault as fault:
            return self._show(visit, fault=fault)
        return self._show(visit, secret=secret)

    def delete_token(self, visit: WebRequest, token_id: int) -> bottle.HTTPResponse:
        """Make a token worthless."""
        if not 0 < token_id <= BIGGEST or not visit.store.tokens.delete(visit.person.id, token_id):
            raise not_found()
        return see_other("/profile")

    def _show(
        self, visit: WebRequest, *, fault: Fault | None = None, secret: str = "", done: Text | None = None
    ) -> bottle.HTTPResponse:
        problems: Problems = fault.problems if fault else {}
        page = self._page(
            visit,
            "profile.html",
            tokens=visit.store.tokens.of_user(visit.person.id),
            error=fault.text if fault else None,
            problems=problems,
            secret=secret,
            done=done,
            least=passwords.MIN_CHARACTERS,
        )
        return page_response(page, fault)
