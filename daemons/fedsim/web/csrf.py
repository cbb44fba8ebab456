"""Protection against cross-site request forgery: the origin of a request and the token of its form."""

from __future__ import annotations

import secrets
from functools import cached_property
from urllib.parse import urlsplit

from fedsim.durations import DAY_SECONDS
from fedsim.web import accounts
from fedsim.web.authentication import FORM_COOKIE, Authentication
from fedsim.web.errors import Fault
from fedsim.web.http_request import HttpRequest
from fedsim.web.i18n import tr


class CsrfProtection:
    """Checks of one request. A bearer token passes them all, as a browser never sends one on its own."""

    def __init__(self, request: HttpRequest, authentication: Authentication) -> None:
        self._request = request
        self._authentication = authentication

    @property
    def token(self) -> str:
        """The token that a form of this page must send back."""
        session = self._authentication.session
        return session.csrf if session else self._anonymous_token

    @cached_property
    def _anonymous_token(self) -> str:
        """Before log-in: a random cookie that the form must repeat."""
        token = self._request.cookie(FORM_COOKIE)
        if not token:
            token = secrets.token_urlsafe(32)
            self._request.set_cookie(FORM_COOKIE, token, DAY_SECONDS)
        return token

    def check_origin(self) -> None:
        """Reject a request that, according to the browser, another site's page caused."""
        if self._authentication.by_bearer_token:
            return
        header = self._request.header
        if header("Sec-Fetch-Site") == "cross-site" or not self._is_same_origin(header("Origin")):
            raise Fault(403, tr("This request came from another site's page and was refused."))

    @property
    def is_valid(self) -> bool:
        """Whether the request repeats the token of its session, which another site's page cannot know."""
        if self._authentication.by_bearer_token:
            return True
        request, session = self._request, self._authentication.session
        expected = session.csrf if session else request.cookie(FORM_COOKIE)
        header = request.header("X-CSRF-Token")
        given = header if request.is_api else header or request.form.get("csrf", "")
        return accounts.same_secret(given, expected)

    def check_token(self) -> None:
        """Reject a form that does not belong to this session."""
        if not self.is_valid:
            raise Fault(403, tr("This form is out of date. Go back, reload the page and send it again."))

    def _is_same_origin(self, origin: str) -> bool:
        """Whether a page of this site sent the request; a malformed origin counts as foreign."""
        try:
            return not origin or urlsplit(origin).netloc == self._request.host
        except ValueError:
            return False
