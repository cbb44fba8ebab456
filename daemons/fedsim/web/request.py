"""A request with everything that a handler needs: the site, the user, the CSRF token, the language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedsim.config import WebConfig
from fedsim.store import Store
from fedsim.store.records import LoginSession, User
from fedsim.web.announcements import Announcements
from fedsim.web.authentication import Authentication
from fedsim.web.csrf import CsrfProtection
from fedsim.web.errors import Fault, status_text
from fedsim.web.http_request import HttpRequest
from fedsim.web.i18n import Text, choose_language, translations_of
from fedsim.web.notifier import Notifier
from fedsim.web.openid import OpenIdProvider

LANGUAGE_COOKIE = "fedsim_language"


@dataclass(frozen=True)
class Site:
    """What every request needs; `clock` returns seconds since the epoch."""

    config: WebConfig
    store: Store
    notifier: Notifier
    clock: Callable[[], float]
    announcements: Announcements = field(default_factory=Announcements)
    openid: OpenIdProvider | None = None


class WebRequest(HttpRequest):
    """The argument of every handler."""

    def __init__(self, site: Site, environ: dict[str, Any]) -> None:
        super().__init__(site.config, environ)
        self.site = site
        self.store = site.store
        self.now = site.clock()
        self.authentication = Authentication(self, site.store, self.now)
        self.csrf = CsrfProtection(self, self.authentication)

    @property
    def user(self) -> User | None:
        """The authenticated user; None for an anonymous request."""
        return self.authentication.user

    @property
    def authenticated_user(self) -> User:
        """The user, on pages that require one."""
        if self.user is None:
            raise Fault(401, status_text(401))
        return self.user

    @property
    def session(self) -> LoginSession | None:
        """The browser's session; None for a bearer token."""
        return self.authentication.session

    @property
    def is_admin(self) -> bool:
        """Whether the user may see and do everything."""
        return self.authentication.is_admin

    @property
    def csrf_token(self) -> str:
        """The token that a form of this page must send back."""
        return self.csrf.token

    @property
    def language(self) -> str:
        """The user's language, or the one chosen on this browser, or the browser's own."""
        chosen = (self.user.language if self.user else "") or self.cookie(LANGUAGE_COOKIE)
        return choose_language(chosen, self.header("Accept-Language"))

    def translate(self, text: Text | str) -> str:
        """The text in the language of the request."""
        return text.to(translations_of(self.language)) if isinstance(text, Text) else text
