"""Whatever is sent to whichever address: it is no fault of ours, and each error is clear and in the right form."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from web_support import PASSWORD, Site, make_site

from fedsim.store.records import UserState
from fedsim.web import accounts, form_fields, forms, passwords

NUMBERS = [b"0", b"1", b"-1", b"+1", b"007", b"2147483648", b"9223372036854775808", b"9" * 400, b"1.5", b"1e3", b"0x1"]
NUMBERS += [b"NaN", b"Infinity", b"-0", "１".encode(), "¹".encode(), b"1 ", b"1_0"]
TEXTS = [
    b"",
    b" ",
    b"\0",
    b"a\0b",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    "\u202e\ufeff🚀".encode(),
    b"../../etc/passwd",
]
TEXTS += [
    b"\r\nSet-Cookie: a=b",
    b"%",
    b"%s%(x)s{0}{{7*7}}",
    b"'\";--<script>",
    b"a" * 3000,
    b"//evil.example",
    b"true",
]
# A value for each kind of thing that JSON has, and some that it has not.
VALUES: list[Any] = [None, True, False, 0, -1, 2**31, 2**63, 10**400, 1.5, 1e308, "", "1", "\ud800", "\0", "x" * 3000]
VALUES += [[], [1], {}, {"a": 1}, float("nan"), float("inf"), [[[[[[1]]]]]]]
BODIES = [
    b"", b"{", b"[]", b"null", b"1", b'"a"', b"\xff", b"\xef\xbb\xbf{}", b"{" * 20_000, b"[" * 60_000, b'{"a":' * 9_000,
    b'{"title": "\\ud800"}', b'{"num_rounds": 1e999}', b'{"num_rounds": NaN}', b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"a": 1, "a": 2}', b"csrf=%", b"&" * 1000, b"a" * 70_000,
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]
KINDS = [
    "application/x-www-form-urlencoded",
    "application/json",
    "multipart/form-data; boundary=x",
    "text/plain",
    "é/\xff",
]
HEADERS = [
    "Cookie",
    "Authorization",
    "Accept-Language",
    "Origin",
    "Range",
    "If-None-Match",
    "If-Modified-Since",
    "Host",
]
HEADERS += ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "HX-Request", "Sec-Fetch-Site", "X-CSRF-Token"]
HEADERS += ["Idempotency-Key", "Content-Length", "Transfer-Encoding", "Expect"]
ODD_HEADERS = [
    "",
    "\xff\xfe",
    "a" * 8000,
    "bytes=0-",
    "bytes=5-1,9-",
    "bytes=-99999999999999999999",
    'W/"x"',
    ", , ;q=x",
]
ODD_HEADERS += [
    'fedsim_session="\\777"; fedsim_form=\xff; =;;',
    "Bearer \xff",
    "Bearer",
    "http://[",
    "Thu, 99 Foo",
    "en;q=1e999",
]
ODD_HEADERS += ["chunked", "-1", "9" * 30, "zh-\xff,*;q=nan"]
QUERIES = ["limit", "before", "saved_before", "after", "newest", "all", "seen", "from", "next", "part", "v"]
FIELDS = [
    *(f.name for f in form_fields.form_fields()),
    forms.SOURCE,
    forms.SUBMISSION,
    "name",
    "password",
    "old",
    "new",
    "label",
]
FIELDS += ["language", "next", "action", "state", "role", "kept.title", "gpu", "iid", "epoch", "save_path", "__proto__"]


@dataclass
class Request:
    """One request, as WSGI has it: text holds bytes as latin-1."""

    who: str
    method: str
    path: bytes
    query: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    kind: str = KINDS[0]


class Door:
    """Sends requests as three kinds of people to a site that has one of everything."""

    def __init__(self, site: Site) -> None:
        self.site = site
        site.node()
        site.user("lin")
        site.admin("root")
        for name in ("lin", "root"):  # the hash says how expensive its check is
            person = site.store.users.by_name(name)
            assert person is not None
            site.store.users.set_password_hash(person.id, passwords.hash_password(PASSWORD))
        task = site.task("lin", num_rounds=3)
        site.run_rounds(task, 3)
        site.finish(task)
        self.paths = sorted(
            (route.method, re.sub(r"<\w+:(?:int|path)>", "{}", route.rule)) for route in site.app.routes
        )
        self.known: dict[tuple[str, int], str] = {}
        self.answers: Counter[int] = Counter()

    def send(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        path = request.path.decode("latin-1")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": request.query.decode("latin-1"),
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "127.0.0.1",
            "CONTENT_LENGTH": str(len(request.body)),
            "CONTENT_TYPE": request.kind,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.errors": io.StringIO(),
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        environ |= self._identity(request)
        for name, value in request.headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key.startswith("CONTENT_") else f"HTTP_{key}"] = value
        answered: list[Any] = []
        pieces = self.site.app(environ, lambda status, headers, _=None: answered.append((status, headers)))
        try:
            content = b"".join(pieces)
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        (status, headers), *_ = answered[-1:]
        return int(status.split()[0]), dict(headers), content

    def _identity(self, request: Request) -> dict[str, str]:
        """Who asks, active and logged in whatever the requests before did: the API's token, or a session."""
        store, now = self.site.store, self.site.now
        if (user := store.users.by_name(request.who)) is None:
            return {}
        if user.state is not UserState.ACTIVE:
            store.users.set_state(user.id, UserState.ACTIVE)
        if request.path.startswith(b"/api/"):
            token = self.known.get(("token", user.id), "")
            if store.tokens.owner(accounts.hash_secret(token), now) is None:
                token, _ = accounts.make_token(store, user, "x", now=now)
            self.known["token", user.id] = token
            return {"HTTP_AUTHORIZATION": f"Bearer {token}"}
        session_id = self.known.get(("session", user.id), "")
        session = store.sessions.get(accounts.hash_secret(session_id), now)
        if session is None:
            session_id, session = accounts.start_session(store, self.site.config, user, old=None, now=now)
        self.known["session", user.id] = session_id
        return {"HTTP_COOKIE": f"fedsim_session={session_id}", "HTTP_X_CSRF_TOKEN": session.csrf}

    def check(self, request: Request) -> None:
        """The one promise of this file."""
        with capture_logs() as logs:
            status, headers, content = self.send(request)
        assert status < 500, (request, status, logs)
        self.answers[status] += 1
        assert headers["X-Content-Type-Options"] == "nosniff", request
        if status < 400:
            return
        form = headers["Content-Type"].partition(";")[0]
        is_api = request.path.startswith(b"/api/") or request.path == b"/healthz"
        assert form == ("application/json" if is_api else "text/html"), (request, status, headers)
        if request.method == "HEAD":
            assert content == b""
        elif is_api:
            assert set(json.loads(content)) - {"problems"} == {"error"}, (request, content)
        else:
            assert b"<h1>" in content, (request, status, content)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    limits = dict.fromkeys(("login_attempts", "registrations_per_address", "registrations_overall"), 10**9)
    site = make_site(tmp_path_factory.mktemp("web"), behind_proxy=True, **limits)
    yield Door(site)
    site.store.close()


odd_bytes = st.sampled_from(NUMBERS + TEXTS) | st.binary(max_size=20)
latin = st.sampled_from(ODD_HEADERS) | st.binary(max_size=30).map(lambda raw: raw.decode("latin-1"))


@st.composite
def requests(draw: st.DrawFn, paths: list[tuple[str, str]]) -> Request:
    """A request with at least one anomaly, and mostly few enough that the rest is evaluated."""
    method, pattern = draw(st.sampled_from(paths))
    path = b"".join(
        part.encode() if part != "{}" else draw(st.just(b"1") | odd_bytes) for part in re.split(r"(\{\})", pattern)
    )
    request = Request(draw(st.sampled_from(["nobody", "lin", "root"])), method, path)
    if method not in {"GET", "HEAD"}:
        if request.path.startswith(b"/api/"):
            request.kind = KINDS[1]
            document = draw(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES), max_size=3))
            request.body = draw(st.just(json.dumps(document).encode()) | st.sampled_from(BODIES))
        else:
            fields = draw(st.dictionaries(st.sampled_from(FIELDS), odd_bytes, max_size=4))
            request.body = draw(st.just(urlencode(fields).encode()) | st.sampled_from(BODIES))
    if draw(st.booleans()):
        query = draw(st.dictionaries(st.sampled_from(QUERIES), odd_bytes, max_size=3))
        request.query = draw(st.just(urlencode(query).encode()) | odd_bytes)
    if draw(st.integers(0, 3)) == 0:
        request.headers = draw(st.dictionaries(st.sampled_from(HEADERS), latin, max_size=3))
    if draw(st.integers(0, 7)) == 0:
        request.method = draw(st.sampled_from(METHODS))
    if draw(st.integers(0, 7)) == 0:
        request.kind = draw(st.sampled_from(KINDS))
    if draw(st.integers(0, 15)) == 0:
        request.path = draw(odd_bytes.map(lambda raw: b"/" + raw))
    return request


def test_nothing_that_is_sent_is_a_fault_of_ours(door: Door) -> None:
    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(requests(door.paths))
    def send(request: Request) -> None:
        door.check(request)

    door.answers.clear()
    send()
    assert door.answers.keys() >= {200, 303, 400, 401, 403, 404, 405, 422}, "the requests do not reach what they try"


@pytest.mark.parametrize("method", METHODS)
def test_every_address_takes_or_refuses_every_method(door: Door, method: str) -> None:
    for pattern in sorted({pattern for _, pattern in door.paths}):
        door.check(Request("lin", method, pattern.replace("{}", "1").encode()))


def test_every_field_of_every_form_is_checked(door: Door) -> None:
    for _, path in (path for path in door.paths if path[0] == "POST" and not path[1].startswith("/api/")):
        for typed in NUMBERS + TEXTS:
            for fields in (dict.fromkeys(FIELDS, typed), {"name": "somebody", "password": PASSWORD, "next": typed}):
                body = urlencode(fields).encode()
                door.check(Request("root", "POST", path.replace("{}", "999").encode(), body=body))


def test_every_value_and_body_of_json_is_checked(door: Door) -> None:
    bodies = [*BODIES, *(json.dumps(dict.fromkeys(FIELDS, value)).encode() for value in VALUES)]
    for method, path in (path for path in door.paths if path[0] != "GET"):
        for body in bodies:
            door.check(Request("root", method, path.replace("{}", "1").encode(), body=body, kind=KINDS[1]))


@pytest.mark.parametrize(
    "path", ["/tasks", "/tasks/1", "/tasks/new", "/login", "/api/v1/tasks", "/api/v1/tasks/1/rounds"]
)
def test_every_part_of_a_query_is_checked(door: Door, path: str) -> None:
    for value in NUMBERS + TEXTS:
        for query in (urlencode(dict.fromkeys(QUERIES, value)).encode(), b"limit=" + value, b"before=" + value):
            door.check(Request("lin", "GET", path.encode(), query))


@pytest.mark.parametrize("name", HEADERS)
def test_every_header_is_checked(door: Door, name: str) -> None:
    for value in ODD_HEADERS:
        for method, path in (("POST", b"/language"), ("GET", b"/tasks/1/checkpoints/3"), ("POST", b"/api/v1/tokens")):
            door.check(Request("lin", method, path, headers={name: value}, body=b""))
