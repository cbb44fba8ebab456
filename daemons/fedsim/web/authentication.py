"""Authentication of a request: by the browser's session cookie or, in the API, by a bearer token."""

from __future__ import annotations

from fedsim.errors import Unavailable
from fedsim.store import Store
from fedsim.store.records import LoginSession, User, UserRole
from fedsim.text import plain
from fedsim.web import accounts, login_limits
from fedsim.web.errors import Fault, status_text
from fedsim.web.http_request import HttpRequest
from fedsim.web.i18n import Text, tr

SESSION_COOKIE = "fedsim_session"
BROWSER_COOKIE = "fedsim_browser"
MAX_BROWSER_CHARACTERS = 200
FORM_COOKIE = "fedsim_form"


class Authentication:
    """Who sends a request, and the session in which they send it.

    `user` is None for an anonymous request; `session` is None for a bearer token, too. `session_hash` is the stored
    form of the session's id.
    """

    def __init__(self, request: HttpRequest, store: Store, now: float) -> None:
        self._request = request
        self._store = store
        self._now = now
        self.session: LoginSession | None = None
        self.session_hash: str | None = None
        self.user: User | None = None

    @property
    def is_admin(self) -> bool:
        """Whether the user may see and do everything."""
        return self.user is not None and self.user.role is UserRole.ADMIN

    @property
    def by_bearer_token(self) -> bool:
        """Whether the request has a valid bearer token."""
        return self.user is not None and self.session is None

    @property
    def obligation(self) -> Text | None:
        """What the user must do on the profile page before anything else; None if nothing."""
        if self.user is None or self.session is None:
            return None
        if self.user.must_change_password:
            return tr("Choose a password of your own: someone else knows the present one.")
        if self.user.openid_key is not None:
            return None  # the provider decides how people prove who they are
        required = self._request.config.require_second_factor
        if self.user.totp_secret is None and (required == "all" or (required == "admins" and self.is_admin)):
            return tr("Set up a second factor: this site requires it.")
        return None

    def check_access(self, *, admins_only: bool) -> None:
        """Reject requests to pages that are reserved for administrators."""
        if admins_only and not self.is_admin:
            raise Fault(403, status_text(403))

    def identify(self) -> None:
        """Determine the user by bearer token (API only) or session.

        Raises:
            Fault: 401 for an invalid token.
            Unavailable: the database does not answer.
        """
        scheme, _, token = self._request.header("Authorization").partition(" ")
        if self._request.is_api and scheme.lower() == "bearer":
            self.user = self._store.tokens.owner(accounts.hash_secret(token.strip()), self._now)
            if self.user is None:
                raise Fault(401, tr("The token is not valid, or has expired: create one on your profile page."))
        elif session_id := self._request.cookie(SESSION_COOKIE):
            self.session_hash = accounts.hash_secret(session_id)
            self.session = self._store.sessions.get(
                self.session_hash,
                self._now,
                idle_seconds=self._request.config.session_idle_hours * 3600,
                counts_as_use=not self._request.header("HX-Request"),  # a page that is open refreshes itself
            )
            self.user = self.session.user if self.session else None

    def try_to_identify(self) -> None:
        """As `identify`, for error pages, which must work without a database."""
        try:
            self.identify()
        except (Fault, Unavailable):
            self.user = self.session = None

    def begin_session(self, user: User) -> None:
        """Log the user in on this browser, under a new session id."""
        config = self._request.config
        old = self._request.cookie(SESSION_COOKIE) or None
        session_id, self.session = accounts.start_session(
            self._store,
            config,
            user,
            old=old,
            now=self._now,
            address=self._request.address[:64],
            browser=plain(self._request.header("User-Agent"))[:MAX_BROWSER_CHARACTERS],
        )
        self.user, self.session_hash = user, accounts.hash_secret(session_id)
        self._request.set_cookie(SESSION_COOKIE, session_id, int(config.session_hours * 3600))
        self._request.set_cookie(BROWSER_COOKIE, login_limits.browser_mark(user))
        self._request.set_cookie(FORM_COOKIE, "")

    def end_session(self) -> None:
        """Log out."""
        if session_id := self._request.cookie(SESSION_COOKIE):
            self._store.sessions.delete(accounts.hash_secret(session_id))
        self._request.set_cookie(SESSION_COOKIE, "")
        self.user = self.session = None
