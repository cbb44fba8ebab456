"""One request: who asks, in which language, by which means, and what they sent – checked before a page sees it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fedsim.config import WebConfig
from fedsim.config.models import is_loopback
from fedsim.errors import Unavailable
from fedsim.store import Store
from fedsim.store.records import LoginSession, User, UserRole
from fedsim.web import accounts
from fedsim.web.errors import Fault, Problems, status_text
from fedsim.web.i18n import Text, choose_language, tr, translations_of
from fedsim.web.notifier import Signal

MAX_BODY_BYTES = 64 * 1024
MAX_FORM_FIELDS = 200
SESSION_COOKIE = "fedsim_session"
FORM_COOKIE = "fedsim_form"
LANGUAGE_COOKIE = "fedsim_language"
_YEAR = 31_536_000


@dataclass(frozen=True)
class Site:
    """What every request needs; `clock` gives seconds since the epoch."""

    config: WebConfig
    store: Store
    signal: Signal
    clock: Callable[[], float]


@dataclass(frozen=True)
class Cookie:
    """A cookie to set with the answer; an empty value removes it."""

    name: str
    value: str
    max_age: int

    def header(self, *, secure: bool) -> str:
        """The value of the `Set-Cookie` header."""
        secured = "; Secure" if secure else ""
        return f"{self.name}={self.value}; Path=/; Max-Age={self.max_age}; HttpOnly; SameSite=Lax{secured}"


class WebRequest:
    """A request on its way through the site."""

    def __init__(self, site: Site, environ: dict[str, Any]) -> None:
        self.site = site
        self.config = site.config
        self.store = site.store
        self.environ = environ
        self.path = "/" + str(environ.get("PATH_INFO", "")).lstrip("/")
        self.method = str(environ.get("REQUEST_METHOD", "GET")).upper()
        self.is_api = self.path.startswith("/api/")
        self.cookies: list[Cookie] = []
        self.now = site.clock()
        self._session: LoginSession | None = None
        self._user: User | None = None

    @property
    def address_within(self) -> str:
        """The page that is asked for, with what stands behind the question mark."""
        query = str(self.environ.get("QUERY_STRING", ""))
        return f"{self.path}?{query}" if query else self.path

    # -- the connection
    def header(self, name: str) -> str:
        """A request header, empty if absent."""
        return str(self.environ.get("HTTP_" + name.upper().replace("-", "_"), ""))

    def _forwarded(self, name: str) -> str:
        """The last value of a proxy's header, believed only from a proxy on this machine, and only if configured."""
        believed = self.config.behind_proxy and is_loopback(str(self.environ.get("REMOTE_ADDR", "")))
        return self.header(name).rsplit(",", 1)[-1].strip() if believed else ""

    @property
    def address(self) -> str:
        """Where the request comes from."""
        return self._forwarded("X-Forwarded-For") or str(self.environ.get("REMOTE_ADDR", ""))

    @property
    def encrypted(self) -> bool:
        """Whether the browser speaks HTTPS."""
        return (self._forwarded("X-Forwarded-Proto") or str(self.environ.get("wsgi.url_scheme", ""))) == "https"

    @property
    def host(self) -> str:
        """The host (and port) that the browser knows this site by."""
        return self._forwarded("X-Forwarded-Host") or self.header("Host")

    @property
    def cookies_travel_safely(self) -> bool:
        """Whether cookies may be set at all: over HTTPS, on loopback, or where the owner allows plain HTTP."""
        return self.encrypted or not self.config.secure_cookies or is_loopback(self.address)

    def cookie_name(self, name: str) -> str:
        """`__Host-` binds a cookie to exactly this host; browsers only take it over HTTPS."""
        return f"__Host-{name}" if self.encrypted else name

    @cached_property
    def _cookies_sent(self) -> dict[str, str]:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(self.header("Cookie"))
        except CookieError:
            return {}
        return {name: morsel.value for name, morsel in jar.items()}

    def cookie(self, name: str) -> str:
        """The value that the browser sent, empty if none."""
        return self._cookies_sent.get(self.cookie_name(name), "")

    def set_cookie(self, name: str, value: str, max_age: int = _YEAR) -> None:
        """Set a cookie with the answer; an empty value removes it."""
        self.cookies.append(Cookie(self.cookie_name(name), value, max_age if value else 0))

    # -- who asks
    @property
    def user(self) -> User | None:
        """Who is logged in."""
        return self._user

    @property
    def person(self) -> User:
        """Who is logged in, where somebody must be."""
        if self._user is None:
            raise Fault(401, status_text(401))
        return self._user

    @property
    def session(self) -> LoginSession | None:
        """The browser's session; None for a bearer token."""
        return self._session

    @property
    def is_admin(self) -> bool:
        """Whether the user may see and do everything."""
        return self._user is not None and self._user.role is UserRole.ADMIN

    def check_access(self, *, admins_only: bool) -> None:
        """Refuse what is for administrators."""
        if admins_only and not self.is_admin:
            raise Fault(403, status_text(403))

    def identify(self) -> None:
        """Find out who asks: by bearer token (API only) or session.

        Raises:
            Fault: 401 for a token that is not valid.
            Unavailable: the database does not answer.
        """
        scheme, _, token = self.header("Authorization").partition(" ")
        if self.is_api and scheme.lower() == "bearer":
            self._user = self.store.tokens.owner(accounts.hash_secret(token.strip()), self.now)
            if self._user is None:
                raise Fault(401, tr("The token is not valid: make one on your profile page."))
        elif session_id := self.cookie(SESSION_COOKIE):
            self._session = self.store.sessions.get(accounts.hash_secret(session_id), self.now)
            self._user = self._session.user if self._session else None

    def try_to_identify(self) -> None:
        """As `identify`, for error pages, which must work without a database."""
        try:
            self.identify()
        except (Fault, Unavailable):
            self._user = self._session = None

    def begin_session(self, user: User) -> None:
        """Log the user in on this browser, under a new session id."""
        old = self.cookie(SESSION_COOKIE) or None
        session_id, self._session = accounts.start_session(self.store, self.config, user, old=old, now=self.now)
        self._user = user
        self.set_cookie(SESSION_COOKIE, session_id, int(self.config.session_hours * 3600))
        self.set_cookie(FORM_COOKIE, "")

    def end_session(self) -> None:
        """Log out."""
        if session_id := self.cookie(SESSION_COOKIE):
            self.store.sessions.delete(accounts.hash_secret(session_id))
        self.set_cookie(SESSION_COOKIE, "")
        self._user = self._session = None

    # -- forgery
    @cached_property
    def _form_token(self) -> str:
        """Before log-in: a random cookie that the form must repeat."""
        token = self.cookie(FORM_COOKIE)
        if not token:
            token = secrets.token_urlsafe(32)
            self.set_cookie(FORM_COOKIE, token, 86_400)
        return token

    @property
    def csrf(self) -> str:
        """What a form of this page must send back."""
        return self._session.csrf if self._session else self._form_token

    @property
    def _by_bearer(self) -> bool:
        """Whether a bearer token was sent, which a browser never does of itself: that needs no further proof."""
        return self._user is not None and self._session is None

    def check_origin(self) -> None:
        """Refuse what a browser says that another site's page made it send."""
        if self._by_bearer:
            return
        if self.header("Sec-Fetch-Site") == "cross-site" or not self._from_here(self.header("Origin")):
            raise Fault(403, tr("This request came from another site's page and was refused."))

    @property
    def has_form_token(self) -> bool:
        """Whether the form is one that this site gave to this session: another site's page cannot know its token."""
        if self._by_bearer:
            return True
        expected = self._session.csrf if self._session else self.cookie(FORM_COOKIE)
        given = self.header("X-CSRF-Token") if self.is_api else self.header("X-CSRF-Token") or self.form.get("csrf", "")
        return accounts.same_secret(given, expected)

    def check_form_token(self) -> None:
        """Refuse a form that is not this session's."""
        if not self.has_form_token:
            raise Fault(403, tr("This form is out of date. Go back, reload the page and send it again."))

    def _from_here(self, origin: str) -> bool:
        """Whether a page of this site sent the request, as far as the browser says; an odd origin is not ours."""
        try:
            return not origin or urlsplit(origin).netloc == self.host
        except ValueError:
            return False

    # -- what was sent
    def check_length(self) -> None:
        """Refuse a body of unknown or too great a length before a byte of it is read."""
        if self.environ.get("HTTP_TRANSFER_ENCODING"):
            raise Fault(411, status_text(411))
        if self._length() > MAX_BODY_BYTES:
            raise Fault(413, status_text(413))

    def _length(self) -> int:
        text = str(self.environ.get("CONTENT_LENGTH") or "0")
        if not (text.isascii() and text.isdigit()):
            raise Fault(400, status_text(400))
        return int(text)

    @cached_property
    def body(self) -> bytes:
        """The request's body, at most `MAX_BODY_BYTES`."""
        self.check_length()
        return bytes(self.environ["wsgi.input"].read(self._length()))

    @cached_property
    def form(self) -> dict[str, str]:
        """A form's fields; of a field given twice the last counts."""
        kind = str(self.environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
        if not self.body:
            return {}
        if kind != "application/x-www-form-urlencoded":
            raise Fault(415, status_text(415))
        try:
            text = self.body.decode("ascii")
            fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS, errors="strict")
        except ValueError as error:
            raise Fault(400, status_text(400)) from error
        return dict(fields)

    @cached_property
    def query(self) -> dict[str, str]:
        """The address's `?name=value` parts."""
        try:
            return dict(parse_qsl(str(self.environ.get("QUERY_STRING", "")), max_num_fields=MAX_FORM_FIELDS))
        except ValueError as error:
            raise Fault(400, status_text(400)) from error

    def query_number(self, name: str, default: int | None, *, least: int, most: int) -> int | None:
        """A whole number from the address, held within bounds."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            problem: Problems = {name: tr("must be a whole number")}
            raise Fault(422, tr("The address has a number that is none."), problems=problem)
        return min(max(int(text), least), most)

    def json_body(self) -> dict[str, Any]:
        """The request's JSON object."""
        try:
            value = json.loads(self.body.decode())
        except (ValueError, RecursionError) as error:
            raise Fault(400, tr("The body is not valid JSON.")) from error
        if not isinstance(value, dict):
            raise Fault(400, tr("The body must be a JSON object."))
        return value

    # -- language
    @property
    def language(self) -> str:
        """The user's, or the switch's, or the browser's language."""
        wanted = (self._user.language if self._user else "") or self.cookie(LANGUAGE_COOKIE)
        return choose_language(wanted, self.header("Accept-Language"))

    def say(self, text: Text | str) -> str:
        """The text in the visitor's language."""
        return text.to(translations_of(self.language)) if isinstance(text, Text) else text
