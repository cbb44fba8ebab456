"""The token with which the commands authenticate. It is stored in a private file and never passed as an argument.

A token file contains only the token or, as written by `fedsim login`, a line with the web's address and then the token.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from fedsim.errors import BadInput, ConfigError, Refused
from fedsim.spool.durable import write_bytes

DEFAULT_URL = "http://127.0.0.1:8080"
MAX_FILE_BYTES = 64 * 1024
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class ApiCredentials:
    """A token, the web that it belongs to (None: any), and the file that contains it."""

    token: str
    url: str | None
    path: Path


def default_path() -> Path:
    """The default token file: `~/.config/fedsim/token`, or below `$XDG_CONFIG_HOME`.

    Raises:
        ConfigError: the user has no home folder.
    """
    folder = Path(click.get_app_dir("fedsim"))
    if not folder.is_absolute():
        raise ConfigError("The environment", ["there is no home folder: set HOME, or name a file with --token-file"])
    return folder / "token"


def clean_url(text: str) -> str:
    """Return the web's address without a trailing slash.

    Raises:
        BadInput: it is not an address, or contains a name and password.
    """
    parts = urlsplit(text.strip())
    try:
        wrong = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:  # the port is not a number
        wrong = True
    if wrong or parts.username or parts.password or parts.query or parts.fragment:
        raise BadInput(
            f"{text!r} is not the address of a web: use the form {DEFAULT_URL} or https://fedsim.example.org"
        )
    return text.strip().rstrip("/")


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    return urlsplit(url).hostname in LOOPBACK


def check_encrypted(url: str, *, insecure_plaintext: bool) -> None:
    """Refuse to send a password or token unencrypted to another machine, unless explicitly allowed."""
    if urlsplit(url).scheme == "http" and not is_local(url) and not insecure_plaintext:
        raise Refused(
            "plaintext",
            f"{url} is not encrypted: password and token could be intercepted. "
            "Use https://, or allow this with --insecure-plaintext",
        )


def read_credentials(path: Path) -> ApiCredentials:
    """Read a token file.

    Raises:
        Refused: the file does not exist, or other users can read it.
        BadInput: the file does not contain a token.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise Refused("not_logged_in", f"You are not logged in: {path} does not exist. Run `fedsim login`") from error
    except OSError as error:
        raise Refused("not_logged_in", f"The token in {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise Refused(
            "token_exposed",
            f"Other users can read the token in {path} (mode {mode:04o}). Run `chmod 600 {path}`. If it may have been "
            "read, delete the token on your profile page and log in again",
        )
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(lines) not in {1, 2} or not lines[-1].isascii() or not lines[-1].isprintable() or " " in lines[-1]:
        raise BadInput(f"{path} does not contain a token in a line. Run `fedsim login` to create it")
    return ApiCredentials(lines[-1], clean_url(lines[0]) if len(lines) == 2 else None, path)


def write_credentials(credentials: ApiCredentials) -> None:
    """Write the token file, readable for its owner only."""
    write_bytes(credentials.path, f"{credentials.url}\n{credentials.token}\n".encode())


def choose_url(credentials: ApiCredentials, given: str | None, *, insecure_plaintext: bool) -> str:
    """Choose the address of the web: the given one, or else that of the token.

    Raises:
        Refused: the token belongs to another web, or would be sent unencrypted.
    """
    if credentials.url and (given is None or clean_url(given) == credentials.url):
        return credentials.url  # its encryption was checked at log-in
    url = clean_url(given or DEFAULT_URL)
    if credentials.url:
        raise Refused(
            "other_web",
            f"The token in {credentials.path} belongs to {credentials.url}, and is not sent to {url}. "
            f"Run `fedsim login --url {url}`, or use another --token-file",
        )
    check_encrypted(url, insecure_plaintext=insecure_plaintext)
    return url
