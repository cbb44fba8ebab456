"""The node's page for its owner: tasks to approve and the audit log, shown by a process of the owner's own.

`fedsim-client page` serves it on loopback for one browser, and asks the node's daemon over the Unix socket of the
owner's group. So the page has only the rights of the person who started it, the daemon knows who decides, and nothing
is reachable while the page is not in use. Other users of the machine can connect to the port, so the address that is
printed has a token that opens one session, once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from hmac import compare_digest
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import quote, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from pydantic import ValidationError

from fedsim.client.owner_socket import AuditQuery, DecisionRequest, PendingQuery, ask
from fedsim.config import WebConfig
from fedsim.errors import BadInput, Unavailable
from fedsim.owner.facts import AskedTask
from fedsim.store.records import User
from fedsim.web.app import HEADERS
from fedsim.web.errors import Fault, status_text, status_title
from fedsim.web.http_request import HttpRequest
from fedsim.web.i18n import Text, choose_language, html_language, tr, translations_of
from fedsim.web.rendering import STATIC, Renderer

TOKEN_SECONDS = 600.0
LINES = 50
LANGUAGE = "fedsim_owner_language"
STATIC_FILES = {"app.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class OwnerRequest(HttpRequest):
    """A request to the page."""

    user: User | None = None

    def __init__(self, environ: dict[str, Any], csrf_token: str) -> None:
        super().__init__(WebConfig(secure_cookies=False), environ)
        self.csrf_token = csrf_token
        self.now = time.time()

    @property
    def language(self) -> str:
        """The language that was chosen on this browser, or the browser's own."""
        return choose_language(self.cookie(LANGUAGE), self.header("Accept-Language"))


class OwnerPage:
    """The WSGI application for the node whose socket is at `path`."""

    def __init__(self, path: Path) -> None:
        self._ask = partial(ask, path)
        self._renderer = Renderer()
        self._token = secrets.token_urlsafe(32)
        self._token_until = time.monotonic() + TOKEN_SECONDS
        self._session = ""
        self._cookie = f"fedsim_owner_{secrets.token_hex(4)}"
        self._csrf = secrets.token_urlsafe(32)
        self._answers: dict[tuple[str, str], Callable[[OwnerRequest], tuple[int, str]]] = {
            ("GET", "/"): self._tasks,
            ("GET", "/audit"): self._audit,
            ("POST", "/decide"): self._decide,
            ("POST", "/language"): self._language,
        }

    @property
    def way_in(self) -> str:
        """The path that opens the session, once."""
        return f"/open?token={self._token}"

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        request = OwnerRequest(environ, self._csrf)
        kind = "text/html; charset=utf-8"
        headers = {**HEADERS, "Cache-Control": "no-store", "Content-Language": html_language(request.language)}
        headers["Content-Security-Policy"] = HEADERS["Content-Security-Policy"].replace("script-src 'self'; ", "")
        try:
            status, text = self._answer(request)
            body = text.encode()
            if request.path.startswith("/static/"):
                kind, body = STATIC_FILES[text], (STATIC / text).read_bytes()
        except Fault as fault:
            status, body = fault.status, self._error(request, fault.status, fault.text).encode()
        except (BadInput, Unavailable) as error:
            status, body = 503, self._error(request, 503, str(error)).encode()
        if status == HTTPStatus.SEE_OTHER:
            headers["Location"], body = text, b""
        cookies = [
            ("Set-Cookie", f"{each.name}={each.value}; Path=/; HttpOnly; SameSite=Strict")
            for each in request.new_cookies
        ]
        sized = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start(f"{status} {HTTPStatus(status).phrase}", [*headers.items(), *sized, *cookies])
        return [body]

    def _answer(self, request: OwnerRequest) -> tuple[int, str]:
        self._check_host(request)
        if request.path.startswith("/static/"):
            name = request.path.removeprefix("/static/")
            if name not in STATIC_FILES:
                raise Fault(404, status_text(404))
            return 200, name
        if request.path == "/open":
            return self._open(request)
        if not self._session or not compare_digest(request.cookie(self._cookie).encode(), self._session.encode()):
            raise Fault(403, tr("Open the address that fedsim-client page printed, or start it again."))
        if (answer := self._answers.get((request.method, request.path))) is None:
            raise Fault(404, status_text(404))
        if request.method == "POST":
            self._check_form(request)
        return answer(request)

    def _check_host(self, request: OwnerRequest) -> None:
        """Reject what another site's page sends by a name of its own for this address, or to this one."""
        origin, host = request.header("Origin"), request.host
        try:
            local = urlsplit(f"//{host}").hostname in LOOPBACK
            same = not origin or urlsplit(origin).netloc == host
        except ValueError:
            local = same = False
        foreign = request.header("Sec-Fetch-Site") in {"cross-site", "same-site"} and request.path != "/open"
        if not local or not same or foreign:
            raise Fault(403, tr("This request came from another site's page and was refused."))

    def _check_form(self, request: OwnerRequest) -> None:
        if not compare_digest(request.form.get("csrf", "").encode(), self._csrf.encode()):
            raise Fault(403, tr("This form is out of date. Go back, reload the page and send it again."))

    def _open(self, request: OwnerRequest) -> tuple[int, str]:
        given, token = request.query.get("token", ""), self._token
        if not token or time.monotonic() > self._token_until or not compare_digest(given.encode(), token.encode()):
            raise Fault(403, tr("This address opens the page once, and not for long: start fedsim-client page again."))
        self._token = ""
        self._session = secrets.token_urlsafe(32)
        request.set_cookie(self._cookie, self._session)
        return 303, "/"

    def _tasks(self, request: OwnerRequest) -> tuple[int, str]:
        found = self._ask(PendingQuery())
        tasks = [AskedTask.of(item) for item in found["pending"]]
        values = {"node": found["node"], "tasks": tasks, "done": request.query.get("done", "")}
        return 200, self._renderer.page(request, "owner_tasks.html", problem=request.query.get("problem", ""), **values)

    def _audit(self, request: OwnerRequest) -> tuple[int, str]:
        before = request.query_number("before", None, least=1, most=10**9)
        found = self._ask(AuditQuery(before=before, limit=LINES))
        lines = [{**dict.fromkeys(_SHOWN, ""), **line} for line in found["lines"]]
        older = lines[-1]["line"] if lines and lines[-1]["line"] > 1 else None
        values = {name: found[name] for name in ("node", "total", "problems")}
        return 200, self._renderer.page(
            request, "owner_audit.html", lines=lines, older=older, newer=before is not None, **values
        )

    def _decide(self, request: OwnerRequest) -> tuple[int, str]:
        form, approve = request.form, request.form.get("answer") == "approve"
        if form.get("answer") not in {"approve", "refuse"}:
            raise Fault(400, status_text(400))
        try:
            order = DecisionRequest(
                uid=form.get("uid", ""),
                digest=form.get("digest", ""),
                approve=approve,
                reason="" if approve else form.get("reason", ""),
            )
        except ValidationError as error:
            raise Fault(400, status_text(400)) from error
        try:
            self._ask(order)
        except BadInput as error:
            return 303, f"/?problem={quote(str(error))}"
        return 303, f"/?done={'approved' if approve else 'refused'}"

    def _language(self, request: OwnerRequest) -> tuple[int, str]:
        request.set_cookie(LANGUAGE, choose_language(request.form.get("language"), ""))
        back = request.form.get("next", "/")
        return 303, back if back in {"/", "/audit"} else "/"

    def _error(self, request: OwnerRequest, status: int, text: Text | str) -> str:
        shown = text.to(translations_of(request.language)) if isinstance(text, Text) else text
        values = {"status": status, "title": status_title(status), "text": shown, "problems": {}}
        return self._renderer.page(request, "error.html", layout="owner_base.html", node="", **values)


_SHOWN = (
    "at",
    "kind",
    "task",
    "dataset",
    "round",
    "num_examples",
    "bytes",
    "by",
    "user",
    "purpose",
    "reason",
    "problems",
)


class PageServer(ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread."""

    daemon_threads = True


class PageHandler(WSGIRequestHandler):
    """One connection."""

    timeout = 20  # of a connection that sends nothing

    def log_message(self, *_: object) -> None:
        """Requests of one's own browser are not logged."""


def serve(path: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page on loopback until the process is interrupted; `ready` gets the address that opens it once."""
    page = OwnerPage(path)
    with make_server("127.0.0.1", port, page, PageServer, PageHandler) as server:
        ready(f"http://127.0.0.1:{server.server_port}{page.way_in}")
        server.serve_forever()
