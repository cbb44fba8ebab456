"""`fedsim login` and `fedsim logout`: create and revoke a token for this machine; the password is not stored."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import click
import httpx

from fedsim.cli.api import ApiClient, fail, open_client, reaching
from fedsim.cli.credentials import (
    DEFAULT_URL,
    ApiCredentials,
    check_encrypted,
    choose_url,
    clean_url,
    default_path,
    read_credentials,
    write_credentials,
)
from fedsim.cli.options import json_option, plaintext_option, token_file_option, url_option
from fedsim.cli.output import Output
from fedsim.cli.pages import Page, read_page
from fedsim.errors import BadInput, Refused

MAX_LABEL_CHARACTERS = 80


@click.command()
@url_option
@click.option("--name", help="Your user name on the web.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--code", help="One-time code of your second factor; without it, you are asked if you have one.")
@click.option("--days", type=click.IntRange(min=1), help="The token expires after this many days (default: 90).")
@token_file_option
@plaintext_option
@json_option
def login(
    url: str | None,
    name: str | None,
    password_stdin: bool,
    code: str | None,
    days: int | None,
    token_file: Path | None,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Log in with the web's address, your name and password, and store a token."""
    out = Output(as_json=as_json)
    if password_stdin and (url is None or name is None):
        raise click.UsageError("--password-stdin requires --url and --name.")
    chosen = clean_url(url or click.prompt("Address of the web", default=DEFAULT_URL, err=True))
    check_encrypted(chosen, insecure_plaintext=insecure_plaintext)
    user = name or click.prompt("Name", err=True)
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, err=True)
    path = token_file or default_path()

    def ask_for_code() -> str:
        if code is None and password_stdin:
            raise Refused("not_allowed", "This account has a second factor: add its one-time code with --code")
        return code or str(click.prompt("One-time code", err=True))

    label = f"fedsim on {socket.gethostname()}"[:MAX_LABEL_CHARACTERS]
    token = make_token(chosen, user, password, label, days=days, ask_for_code=ask_for_code)
    try:
        write_credentials(ApiCredentials(token, chosen, path))
    except OSError as error:
        raise BadInput(f"The token cannot be stored in {path}: {error.strerror}; use another --token-file") from error
    if as_json:
        out.document({"url": chosen, "user": user, "token_file": str(path)})
    else:
        out.say(f"Logged in to {chosen} as {user}; the token is in {path}.")


@click.command()
@token_file_option
@json_option
def logout(token_file: Path | None, as_json: bool) -> None:
    """Revoke the stored token, and remove it."""
    out = Output(as_json=as_json)
    path = token_file or default_path()
    credentials = read_credentials(path)
    url = choose_url(credentials, None, insecure_plaintext=False)
    with ApiClient(url, credentials.token) as api:
        try:
            mine = [t["id"] for t in api.tokens() if credentials.token.startswith(t["hint"])]
        except Refused:  # the token is no longer valid: only the file is left to remove
            mine = []
        # The hint is the first characters of a token; if several tokens match, ours cannot be identified.
        if len(mine) == 1:
            api.delete_token(mine[0])
    path.unlink()
    if len(mine) > 1:
        out.note(f"Several of your tokens begin with the same characters: delete this one on {url}/profile")
    if as_json:
        out.document({"url": url, "token_file": str(path), "deleted": len(mine) == 1})
    else:
        out.say(f"Logged out of {url}; {path} is removed.")


def make_token(
    url: str, name: str, password: str, label: str, *, days: int | None, ask_for_code: Callable[[], str]
) -> str:
    """Log in through the web's form, create a token called `label`, and log out of the session.

    `days`: after which it expires, None for the web's default. `ask_for_code` is called if the account has a second
    factor.

    Raises:
        Refused: the name or password is wrong, the account is not active, or the user must first do something on the
            profile page: choose a password, or set up a second factor.
        TryAgain: too many failed attempts.
        Unavailable: fedsim's web is not reachable at `url`.
    """
    with reaching(url), open_client(url) as http:
        page = read_page(url, http, "/login")
        answer = http.post(f"{url}/login", data={"csrf": page.csrf, "name": name, "password": password})
        asked = Page.read(answer)
        if "ticket" in asked.hidden:
            answer = http.post(f"{url}/login/code", data={**asked.hidden, "code": ask_for_code()})
        if not answer.is_redirect:
            said = Page.read(answer).alert or "The log-in failed"
            fail(url, httpx.Response(answer.status_code, headers=_only(answer, "Retry-After"), json={"error": said}))
        csrf = read_page(url, http, "/profile").csrf
        made = http.post(f"{url}/api/v1/tokens", json={"label": label, "days": days}, headers={"X-CSRF-Token": csrf})
        try:
            if not made.is_success:
                fail(url, made)
        except Refused as refused:  # there is something that the profile page asks of this user first
            raise Refused(refused.code, f"{refused} Do so on {url}/profile, then log in here again") from refused
        token = str(made.json()["secret"])
        http.post(f"{url}/logout", data={"csrf": csrf})
    return token


def _only(response: httpx.Response, name: str) -> dict[str, str]:
    return {name: response.headers[name]} if name in response.headers else {}
