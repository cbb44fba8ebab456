"""The client of the web's JSON API. Every failure becomes an error with its exit code."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import httpx

from fedsim import __version__
from fedsim.cli.credentials import is_local
from fedsim.errors import EX_TRY_AGAIN, BadInput, ConfigError, FedsimError, NotThere, Refused, Unavailable

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
PAGE_SIZE = 500
PROXIES = ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
"""Variables of the environment that name a proxy. Their values can contain passwords and are never printed."""
Json = dict[str, Any]


class TryAgain(Unavailable):
    """The web is temporarily unable to answer; `retry_after` is the delay in seconds that it requests, if any."""

    exit_code = EX_TRY_AGAIN

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class Rejected(BadInput):
    """The web rejected a request; `problems` maps each field to what is wrong with it."""

    def __init__(self, message: str, problems: dict[str, str] | None = None) -> None:
        self.problems = problems or {}
        super().__init__("\n  ".join([message, *(f"{field}: {problem}" for field, problem in self.problems.items())]))


def open_client(url: str, **options: Any) -> httpx.Client:
    """Create an HTTP client for the web; a proxy from the environment is not used for this machine."""
    headers = {"User-Agent": f"fedsim/{__version__}", "Accept-Language": "en", **options.pop("headers", {})}
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=not is_local(url), **options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        proxies = [name for name in PROXIES if os.environ.get(name)]
        problem = (
            "a SOCKS proxy is not supported" if isinstance(error, ImportError) else "not the address of an HTTP proxy"
        )
        advice = f"{problem}; unset it, or list {urlsplit(url).hostname} in NO_PROXY"
        raise ConfigError(f"{', '.join(proxies) or 'The proxy'} in the environment", [advice]) from error
    except OSError as error:  # of certificates; an SSLError, too
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        advice = f"its certificates cannot be read: {error.strerror or error}"
        raise ConfigError(f"{', '.join(names) or 'The system'}", [advice]) from error


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn exceptions of httpx into `Unavailable`."""
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            advice = "if the lab has its own authority, set SSL_CERT_FILE to the file of its certificate"
        else:
            advice = "check the address (--url), and that fedsim-web is running there"
        raise Unavailable(
            f"The web at {url} cannot be reached: {str(error) or type(error).__name__}; {advice}"
        ) from error


class ApiClient:
    """A client of the JSON API at `url`, for the owner of `token`.

    Every method may raise `Unavailable` (exit code 69), `TryAgain` (75), `Refused` (77), `NotThere` (66) and
    `Rejected` (65).
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._http = open_client(url, headers={"Authorization": f"Bearer {token}"})

    def __enter__(self) -> Self:
        """Return the client, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._http.close()

    # -- tasks
    def tasks(self, *, limit: int | None, everybody: bool = False) -> list[Json]:
        """The tasks, newest first; with `limit` None all of them, fetched page by page."""
        found: list[Json] = []
        while limit is None or len(found) < limit:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
            query: Json = {"limit": size, **({"all": 1} if everybody else {})}
            if found:
                query["before"] = found[-1]["number"]
            page: list[Json] = self._ask("GET", "tasks", params=query)["tasks"]
            found += page
            if len(page) < size:
                break
        return found

    def submit(self, settings: Json, repeats: int | None = None) -> tuple[Json, list[str]]:
        """Submit a task, or run the task `repeats` again; returns it and notes for the user.

        A request whose response was lost is repeated once.
        """
        headers = {"Idempotency-Key": secrets.token_urlsafe(16)}  # a repeated request creates no second task
        options: dict[str, Any] = {
            "json": settings,
            "headers": headers,
            "params": {} if repeats is None else {"repeats": repeats},
        }
        try:
            answer = self._ask("POST", "tasks", **options)
        except Unavailable as error:
            if not isinstance(error.__cause__, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
                raise
            answer = self._ask("POST", "tasks", **options)
        return answer["task"], answer["notes"]

    def task(self, number: int) -> Json:
        """One task."""
        task: Json = self._ask("GET", f"tasks/{number}", what=f"Task {number}")["task"]
        return task

    def stop(self, number: int) -> Json:
        """Stop the task."""
        task: Json = self._ask("POST", f"tasks/{number}/stop", what=f"Task {number}")["task"]
        return task

    def resume(self, number: int) -> Json:
        """Resume the task."""
        task: Json = self._ask("POST", f"tasks/{number}/resume", what=f"Task {number}")["task"]
        return task

    def continue_task(self, number: int, rounds: int) -> Json:
        """Let the completed task go on for `rounds` more."""
        path = f"tasks/{number}/continue"
        task: Json = self._ask("POST", path, what=f"Task {number}", json={"rounds": rounds})["task"]
        return task

    def delete(self, number: int) -> Json:
        """Delete the finished task."""
        task: Json = self._ask("DELETE", f"tasks/{number}", what=f"Task {number}")["task"]
        return task

    def rounds(self, number: int) -> list[Json]:
        """All rounds, round 0 first."""
        return self._all_pages(number, "rounds")

    def plan(self, number: int) -> Json | None:
        """How each node trains the task; None before it is planned."""
        plan: Json | None = self._ask("GET", f"tasks/{number}/plan", what=f"Task {number}")["plan"]
        return plan

    def task_partition(self, number: int) -> Json:
        """How the task divides its data, or the reason why this is not shown."""
        return self._ask("GET", f"tasks/{number}/partition", what=f"Task {number}")

    def statistics(self, number: int) -> Json | None:
        """What the nodes reported of their data; None of a task that has no statistics."""
        found: Json | None = self._ask("GET", f"tasks/{number}/statistics", what=f"Task {number}")["statistics"]
        return found

    def partition(self, settings: Json) -> Json:
        """How a task with these settings would divide the nodes' data, or the reason why this is not shown."""
        return self._ask("POST", "partition", json=settings)

    def participation(self, number: int) -> Json:
        """How nodes and clients took part in the task."""
        return self._ask("GET", f"tasks/{number}/participation", what=f"Task {number}")

    def newest_rounds(self, number: int, limit: int) -> tuple[list[Json], int]:
        """The last `limit` rounds, in order, and the total number of rounds."""
        query = {"newest": 1, "limit": limit}
        answer = self._ask("GET", f"tasks/{number}/rounds", what=f"Task {number}", params=query)
        return answer["rounds"], answer["total"]

    def checkpoints(self, number: int) -> list[Json]:
        """All checkpoints by round, including removed ones."""
        return self._all_pages(number, "checkpoints")

    def _all_pages(self, number: int, kind: str) -> list[Json]:
        found: list[Json] = []
        query = {"limit": PAGE_SIZE}
        while True:
            page = self._ask("GET", f"tasks/{number}/{kind}", what=f"Task {number}", params=query)[kind]
            found += page
            if len(page) < PAGE_SIZE:
                return found
            query["after"] = page[-1]["round"]

    @contextmanager
    def checkpoint(self, number: int, round_number: int) -> Iterator[Iterator[bytes]]:
        """Stream the content of a checkpoint."""
        path = f"{self.url}/api/v1/tasks/{number}/checkpoints/{round_number}"
        with reaching(self.url), self._http.stream("GET", path) as response:
            if response.status_code != HTTPStatus.OK:
                response.read()
                fail(self.url, response, f"Task {number}, round {round_number}")
            yield response.iter_bytes()

    def checkpoint_description(self, number: int, round_number: int) -> bytes:
        """The metadata of a checkpoint, as the server wrote it."""
        path, what = f"tasks/{number}/checkpoints/{round_number}", f"Task {number}, round {round_number}"
        return self._send("GET", path, what=what, params={"part": "json"}).content

    # -- nodes, options, tokens
    def nodes(self) -> list[Json]:
        """The latest announcement of every node."""
        nodes: list[Json] = self._ask("GET", "nodes")["nodes"]
        return nodes

    def options(self) -> Json:
        """The models, data sets and plug-ins that tasks can use."""
        return self._ask("GET", "options")

    def tokens(self) -> list[Json]:
        """The user's tokens, without their secrets."""
        tokens: list[Json] = self._ask("GET", "tokens")["tokens"]
        return tokens

    def delete_token(self, token_id: int) -> None:
        """Revoke a token."""
        self._ask("DELETE", f"tokens/{token_id}")

    # -- requests
    def _ask(self, method: str, path: str, *, what: str = "", **options: Any) -> Json:
        content = _json(self._send(method, path, what=what, **options))
        if content is None:
            raise Unavailable(f"{self.url} does not answer like fedsim's web: check the address (--url)")
        return content

    def _send(self, method: str, path: str, *, what: str = "", **options: Any) -> httpx.Response:
        with reaching(self.url):
            response = self._http.request(method, f"{self.url}/api/v1/{path}", **options)
        if not response.is_success:
            fail(self.url, response, what)
        return response


def fail(url: str, response: httpx.Response, what: str = "") -> NoReturn:
    """Raise the error that an unsuccessful response means; `what` names the object of the request."""
    content = _json(response) or {}
    status = response.status_code
    text = str(content.get("error") or f"{url} answers {status} {response.reason_phrase}")
    match status:
        case 401:
            raise Refused("not_logged_in", f"{url} does not accept the token: {text} Run `fedsim login` for a new one")
        case 403:
            raise Refused("not_allowed", text)
        case 404 | 410 if content:
            raise NotThere(f"{what}: {text}" if what else text)
        case 400 | 409 | 413 | 415 | 422:
            raise Rejected(text, content.get("problems"))
        case 429 | 502 | 503 | 504:
            wait = response.headers.get("Retry-After", "")
            raise TryAgain(text, float(wait) if wait.isascii() and wait.isdigit() else None)
        case 500:
            raise FedsimError(text)
        case _:
            raise Unavailable(f"{url} answers {status}, unlike fedsim's web: check the address (--url)")


def _json(response: httpx.Response) -> Json | None:
    if response.headers.get("Content-Type", "").partition(";")[0] != "application/json":
        return None
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
