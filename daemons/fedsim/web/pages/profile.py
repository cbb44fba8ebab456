"""The user's own page: language, password, second factor, sessions, and tokens for the JSON API."""

from __future__ import annotations

import bottle
from markupsafe import Markup

from fedsim.store.records import User
from fedsim.web import accounts, passwords, second_factor
from fedsim.web.errors import Fault, Problems, not_found, status_text
from fedsim.web.i18n import Text, tr
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import page_response, see_other
from fedsim.web.routes import Route

BIGGEST = 2**63 - 1
MAX_DIGITS = 10


class ProfilePages:
    """The pages of the user's profile."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/profile", self.profile, always=True),
            Route("POST", "/profile/password", self.change_password, always=True),
            Route("POST", "/profile/second-factor", self.begin_second_factor, always=True),
            Route("POST", "/profile/second-factor/confirm", self.set_second_factor, always=True),
            Route("POST", "/profile/second-factor/remove", self.remove_second_factor),
            Route("POST", "/profile/sessions/<id_hash:re:[0-9a-f]{64}>/end", self.end_session, always=True),
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
        label, days = request.form.get("label", ""), request.form.get("days", "")
        whole = int(days) if days.isascii() and days.isdigit() and len(days) < MAX_DIGITS else days
        try:
            secret, _ = accounts.make_token(
                request.store,
                request.authenticated_user,
                label,
                now=request.now,
                days=None if whole == "" else whole,
                max_days=request.config.max_token_days,
            )
        except Fault as fault:
            return self._show(request, fault=fault)
        return self._show(request, secret=secret)

    def begin_second_factor(self, request: WebRequest) -> bottle.HTTPResponse:
        """Show a new secret, which is stored only once a code of it was typed."""
        return self._show(request, totp_secret=second_factor.new_secret())

    def set_second_factor(self, request: WebRequest) -> bottle.HTTPResponse:
        """Store the secret, if the password is right and the code belongs to it."""
        user, secret = request.authenticated_user, request.form.get("secret", "")
        if not second_factor.is_secret(secret) or user.totp_secret is not None:
            raise Fault(400, status_text(400))
        try:
            self._check_password(request, user, _unchanged())
            second_factor.check_code(
                request.store, user, secret, request.form.get("code", ""), address=request.address, now=request.now
            )
        except Fault as fault:
            return self._show(request, fault=fault, totp_secret=secret)
        accounts.set_second_factor(request.store, user, secret, by=user, now=request.now)
        return see_other("/profile")

    def remove_second_factor(self, request: WebRequest) -> bottle.HTTPResponse:
        """Remove the second factor, if the password is right and the code belongs to it."""
        user = request.authenticated_user
        try:
            self._check_password(request, user, _unchanged())
            if user.totp_secret is not None:
                code = request.form.get("code", "")
                second_factor.check_code(
                    request.store, user, user.totp_secret, code, address=request.address, now=request.now
                )
        except Fault as fault:
            return self._show(request, fault=fault)
        accounts.set_second_factor(request.store, user, None, by=user, now=request.now)
        return see_other("/profile")

    def _check_password(self, request: WebRequest, user: User, wrong: Fault) -> None:
        """Raise `wrong` unless the form has the user's password."""
        password = request.form.get("present", "")
        if not accounts.is_own_password(
            request.store, request.config, user, password, address=request.address, now=request.now
        ):
            raise wrong

    def end_session(self, request: WebRequest, id_hash: str) -> bottle.HTTPResponse:
        """Log out another browser of the user, if the password is right; users of a provider have none."""
        user, store = request.authenticated_user, request.store
        if id_hash not in {session.id_hash for session in store.sessions.of_user(user.id, request.now)}:
            raise not_found()
        try:
            if user.openid_key is None:
                wrong = Fault(422, tr("This is not your password: the session was not ended."))
                self._check_password(request, user, wrong)
        except Fault as fault:
            return self._show(request, fault=fault)
        store.sessions.delete(id_hash, user_id=user.id)
        return see_other("/profile")

    def delete_token(self, request: WebRequest, token_id: int) -> bottle.HTTPResponse:
        """Revoke a token."""
        if not 0 < token_id <= BIGGEST or not request.store.tokens.delete(request.authenticated_user.id, token_id):
            raise not_found()
        return see_other("/profile")

    def _show(
        self,
        request: WebRequest,
        *,
        fault: Fault | None = None,
        secret: str = "",
        done: Text | None = None,
        totp_secret: str = "",
    ) -> bottle.HTTPResponse:
        problems: Problems = fault.problems if fault else {}
        user = request.authenticated_user
        set_up = None
        if totp_secret:
            uri = second_factor.provisioning_uri(totp_secret, user.name)
            set_up = {"secret": totp_secret, "uri": uri, "picture": Markup(second_factor.qr_code(uri))}  # noqa: S704 - an SVG of its own
        page = self._page(
            request,
            "profile.html",
            tokens=request.store.tokens.of_user(user.id),
            token_days=min(accounts.DEFAULT_TOKEN_DAYS, request.config.max_token_days),
            max_token_days=request.config.max_token_days,
            sessions=request.store.sessions.of_user(user.id, request.now),
            this_session=request.authentication.session_hash,
            obligation=request.authentication.obligation,
            set_up=set_up,
            error=fault.text if fault else None,
            problems=problems,
            secret=secret,
            done=done,
            least=passwords.MIN_CHARACTERS,
        )
        return page_response(page, fault)


def _unchanged() -> Fault:
    problems: Problems = {"present": tr("is not your password")}
    return Fault(422, tr("The second factor was not changed."), problems=problems)
