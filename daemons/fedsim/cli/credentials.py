"""Where the web is and as whom the command speaks: a token in a file that only its owner can read, never an argument.

A token file holds the token alone in a line or, as `fedsim login` writes it, the web's address and then the token.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from fedsim.errors import BadInput, Refused
from fedsim.spool.durable import write_bytes

DEFAULT_URL = "http://127.0.0.1:8080"
MAX_FILE_BYTES = 64 * 1024
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class ApiCredentials:
    """A token, the web that it is for (None: whichever is named), and the file that it stands in."""

    token: str
    url: str | None
    path: Path


def default_path() -> Path:
    """Where `fedsim login` keeps the token: `~/.config/fedsim/token`, or below `$XDG_CONFIG_HOME`."""
    return Path(click.get_app_dir("fedsim")) / "token"


def clean_url(text: str) -> str:
    """The web's address without a slash at its end.

    Raises:
        BadInput: it is not an address, or holds a name and password.
    """
    parts = urlsplit(text.strip())
    try:
        wrong = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:  # a port that is no number
        wrong = True
    if wrong or parts.username or parts.password or parts.query or parts.fragment:
        raise BadInput(f"{text!r} is not the address of a web: give it as {DEFAULT_URL} or https://fedsim.example.org")
    return text.strip().rstrip("/")


def is_local(url: str) -> bool:
    """Whether what is sent there never leaves this machine."""
    return urlsplit(url).hostname in LOOPBACK


def check_encrypted(url: str, *, insecure_plaintext: bool) -> None:
    """Refuse to send a password or token in the clear to another machine, unless the user insists."""
    if urlsplit(url).scheme == "http" and not is_local(url) and not insecure_plaintext:
        raise Refused(
            "plaintext",
            f"{url} is not encrypted: anybody on the way could read the password and the token. "
            "Use https://, or insist with --insecure-plaintext",
        )


def read_credentials(path: Path) -> ApiCredentials:
    """Read a token file.

    Raises:
        Refused: nobody has logged in, or others may read the file.
        BadInput: the file holds no token.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise Refused("not_logged_in", f"You are not logged in: {path} is not there. Run `fedsim login`") from error
    except OSError as error:
        raise Refused("not_logged_in", f"The token in {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise Refused(
            "token_exposed",
            f"Others may read the token in {path} (mode {mode:04o}). Run `chmod 600 {path}`, and if somebody may have "
            "read it, delete the token on your profile page and log in again",
        )
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(lines) not in {1, 2} or not lines[-1].isascii() or not lines[-1].isprintable() or " " in lines[-1]:
        raise BadInput(f"{path} holds no token: it needs one line with a token. Run `fedsim login` to write it")
    return ApiCredentials(lines[-1], clean_url(lines[0]) if len(lines) == 2 else None, path)


def write_credentials(credentials: ApiCredentials) -> None:
    """Write the token file, readable for its owner only."""
    write_bytes(credentials.path, f"{credentials.url}\n{credentials.token}\n".encode())


def choose_url(credentials: ApiCredentials, given: str | None, *, insecure_plaintext: bool) -> str:
    """The web to ask: the one that was given, else the one that the token is for.

    Raises:
        Refused: the token is another web's, or would travel unencrypted.
    """
    if credentials.url and (given is None or clean_url(given) == credentials.url):
        return credentials.url  # however it is reached, that was agreed to at log-in
    url = clean_url(given or DEFAULT_URL)
    if credentials.url:
        raise Refused(
            "other_web",
            f"The token in {credentials.path} is for {credentials.url}, and is not shown to {url}. "
            f"Run `fedsim login --url {url}`, or name another --token-file",
        )
    check_encrypted(url, insecure_plaintext=insecure_plaintext)
    return url
