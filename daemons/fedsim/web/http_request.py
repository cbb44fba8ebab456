"""An HTTP request as it was received: headers, cookies, body, query; every value is checked when it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from fedsim.config import WebConfig
from fedsim.config.fields import is_loopback
from fedsim.web.errors import Fault, Problems, status_text
from fedsim.web.i18n import tr

MAX_BODY_BYTES = 64 * 1024
MAX_FORM_FIELDS = 2000  # the task form has a field for each option of each installed plug-in
_YEAR = 31_536_000


@dataclass(frozen=True)
class Cookie:
    """A cookie to set with the response; an empty value removes it."""

    name: str
    value: str
    max_age: int

    def header(self, *, secure: bool) -> str:
        """The value of the `Set-Cookie` header."""
        secured = "; Secure" if secure else ""
        return f"{self.name}={self.value}; Path=/; Max-Age={self.max_age}; HttpOnly; SameSite=Lax{secured}"


class HttpRequest:
    """A request, independent of who sends it."""

    def __init__(self, config: WebConfig, environ: dict[str, Any]) -> None:
        self.config = config
        self.environ = environ
        self.path = "/" + str(environ.get("PATH_INFO", "")).lstrip("/")
        self.method = str(environ.get("REQUEST_METHOD", "GET")).upper()
        self.is_api = self.path.startswith("/api/")
        self.new_cookies: list[Cookie] = []

    @property
    def path_with_query(self) -> str:
        """The requested path with its query string."""
        query = str(self.environ.get("QUERY_STRING", ""))
        return f"{self.path}?{query}" if query else self.path

    # -- the connection
    def header(self, name: str) -> str:
        """A request header, empty if absent."""
        return str(self.environ.get("HTTP_" + name.upper().replace("-", "_"), ""))

    def _forwarded(self, name: str) -> str:
        """The last value of a proxy's header; used only if configured, and only from a proxy on this machine."""
        trusted = self.config.behind_proxy and is_loopback(str(self.environ.get("REMOTE_ADDR", "")))
        return self.header(name).rsplit(",", 1)[-1].strip() if trusted else ""

    @property
    def address(self) -> str:
        """The client's address."""
        return self._forwarded("X-Forwarded-For") or str(self.environ.get("REMOTE_ADDR", ""))

    @property
    def encrypted(self) -> bool:
        """Whether the browser uses HTTPS."""
        return (self._forwarded("X-Forwarded-Proto") or str(self.environ.get("wsgi.url_scheme", ""))) == "https"

    @property
    def host(self) -> str:
        """The host (and port) under which the browser addresses this site."""
        return self._forwarded("X-Forwarded-Host") or self.header("Host")

    @property
    def may_set_cookies(self) -> bool:
        """Whether cookies may be set: over HTTPS, on loopback, or where the configuration allows plain HTTP."""
        return self.encrypted or not self.config.secure_cookies or is_loopback(self.address)

    def cookie_name(self, name: str) -> str:
        """The cookie's full name; `__Host-` binds it to exactly this host, which browsers accept only over HTTPS."""
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
        """The value that the browser sent, empty if it sent none."""
        return self._cookies_sent.get(self.cookie_name(name), "")

    def set_cookie(self, name: str, value: str, max_age: int = _YEAR) -> None:
        """Set a cookie with the response; an empty value removes it."""
        self.new_cookies.append(Cookie(self.cookie_name(name), value, max_age if value else 0))

    # -- the body and the query
    def check_length(self) -> None:
        """Reject a body of unknown length or beyond the limit before reading any of it."""
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
        """The fields of a form; the last value of a repeated field is used."""
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
        """The query parameters of the URL."""
        try:
            return dict(parse_qsl(str(self.environ.get("QUERY_STRING", "")), max_num_fields=MAX_FORM_FIELDS))
        except ValueError as error:
            raise Fault(400, status_text(400)) from error

    def query_number(self, name: str, default: int | None, *, least: int, most: int) -> int | None:
        """An integer query parameter, clamped to the bounds."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            problem: Problems = {name: tr("must be a whole number")}
            raise Fault(422, tr("A number in the address is not valid."), problems=problem)
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
