"""`fedsim login` and `fedsim logout`: a token of this machine's own, made with a password that is not kept."""

from __future__ import annotations

import socket
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import httpx

from fedsim.cli.api import Api, fail, open_client, reaching
from fedsim.cli.credentials import (
    DEFAULT_URL,
    Credentials,
    check_encrypted,
    choose_url,
    clean_url,
    default_path,
    read_credentials,
    write_credentials,
)
from fedsim.cli.options import json_option, plaintext_option, token_file_option, url_option
from fedsim.cli.output import Output
from fedsim.errors import BadInput, Refused, Unavailable

MAX_LABEL_CHARACTERS = 80
VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


@click.command()
@url_option
@click.option("--name", help="Your user name on the web.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, without asking.")
@token_file_option
@plaintext_option
@json_option
def login(
    url: str | None,
    name: str | None,
    password_stdin: bool,
    token_file: Path | None,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Log in: ask for the web's address, your name and password, and keep a token made with them."""
    out = Output(as_json=as_json)
    if password_stdin and (url is None or name is None):
        raise click.UsageError("--password-stdin needs --url and --name as well: there is nobody to ask.")
    chosen = clean_url(url or click.prompt("Address of the web", default=DEFAULT_URL, err=True))
    check_encrypted(chosen, insecure_plaintext=insecure_plaintext)
    user = name or click.prompt("Name", err=True)
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, err=True)
    path = token_file or default_path()
    token = make_token(chosen, user, password, f"fedsim on {socket.gethostname()}"[:MAX_LABEL_CHARACTERS])
    try:
        write_credentials(Credentials(token, chosen, path))
    except OSError as error:
        raise BadInput(f"The token cannot be kept in {path}: {error.strerror}; name another --token-file") from error
    if as_json:
        out.document({"url": chosen, "user": user, "token_file": str(path)})
    else:
        out.say(f"Logged in to {chosen} as {user}; the token is in {path}.")


@click.command()
@token_file_option
@json_option
def logout(token_file: Path | None, as_json: bool) -> None:
    """Make the kept token worthless, and remove it."""
    out = Output(as_json=as_json)
    path = token_file or default_path()
    credentials = read_credentials(path)
    url = choose_url(credentials, None, insecure_plaintext=False)
    with Api(url, credentials.token) as api:
        try:
            mine = [t["id"] for t in api.tokens() if credentials.token.startswith(t["hint"])]
        except Refused:  # the web no longer knows it: there is only the file to remove
            mine = []
        # The hint is the token's first characters. Where it fits several, which one is ours cannot be known.
        if len(mine) == 1:
            api.delete_token(mine[0])
    path.unlink()
    if len(mine) > 1:
        out.note(f"Several of your tokens begin like this one: delete it yourself on {url}/profile")
    if as_json:
        out.document({"url": url, "token_file": str(path), "deleted": len(mine) == 1})
    else:
        out.say(f"Logged out of {url}; {path} is removed.")


def make_token(url: str, name: str, password: str, label: str) -> str:
    """Log in through the web's own form, make a token called `label`, and log out of the session again.

    Raises:
        Refused: wrong name or password, or the account may not log in.
        TryAgain: too many wrong attempts.
        Unavailable: there is no web of fedsim at `url`.
    """
    with reaching(url), open_client(url) as http:
        page = _page(url, http, "/login")
        answer = http.post(f"{url}/login", data={"csrf": page.csrf, "name": name, "password": password})
        if not answer.is_redirect:
            said = _Page.read(answer).alert or "The log-in failed"
            fail(url, httpx.Response(answer.status_code, headers=_only(answer, "Retry-After"), json={"error": said}))
        csrf = _page(url, http, "/profile").csrf
        made = http.post(f"{url}/api/v1/tokens", json={"label": label}, headers={"X-CSRF-Token": csrf})
        if not made.is_success:
            fail(url, made)
        token = str(made.json()["secret"])
        http.post(f"{url}/logout", data={"csrf": csrf})
    return token


def _only(response: httpx.Response, name: str) -> dict[str, str]:
    return {name: response.headers[name]} if name in response.headers else {}


def _page(url: str, http: httpx.Client, path: str) -> _Page:
    response = http.get(f"{url}{path}")
    page = _Page.read(response)
    if not response.is_success and page.alert:
        raise Refused("not_allowed", page.alert)
    if not response.is_success or not page.csrf:
        raise Unavailable(f"{url} answers {response.status_code}, not as fedsim's web does: check the address (--url)")
    return page


class _Page(HTMLParser):
    """What matters of a page: the token that its forms must send back, and its message."""

    def __init__(self) -> None:
        super().__init__()
        self.csrf = ""
        self._message: list[str] = []
        self._depth = 0

    @classmethod
    def read(cls, response: httpx.Response) -> _Page:
        page = cls()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            page.feed(response.text)
        return page

    @property
    def alert(self) -> str:
        """The message, in one line."""
        return " ".join(" ".join(self._message).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "input":
            if given.get("name") == "csrf":
                self.csrf = given.get("value") or ""
        elif tag not in VOID and (self._depth or _is_message(given)):
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        if self._depth and tag not in VOID:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if self._depth:
            self._message.append(data)


def _is_message(attributes: dict[str, str | None]) -> bool:
    """Whether an element is what the page has to say: a form's alert, or an error page's text."""
    return attributes.get("role") == "alert" or "error" in (attributes.get("class") or "").split()
