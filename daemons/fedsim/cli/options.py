"""What commands have in common: --json on each, and where and as whom to ask on those that ask the web."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import click

from fedsim.cli.api import ApiClient
from fedsim.cli.credentials import choose_url, default_path, read_credentials
from fedsim.cli.output import Output
from fedsim.command import State

P = ParamSpec("P")


def _remember(context: click.Context, _: click.Parameter, value: bool) -> bool:
    state = context.find_object(State)
    if state is not None:
        state.as_json = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_remember,
    help="One JSON document on standard output, and nothing else there.",
)
url_option = click.option("--url", envvar="FEDSIM_URL", help="Address of the web [env: FEDSIM_URL].")
token_file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="FEDSIM_TOKEN_FILE",
    help="File (mode 0600) with the token [env: FEDSIM_TOKEN_FILE; else where `fedsim login` keeps it].",
)
plaintext_option = click.option(
    "--insecure-plaintext",
    is_flag=True,
    envvar="FEDSIM_INSECURE_PLAINTEXT",
    help="Send the token unencrypted to another machine.",
)


def web_options(function: Callable[P, int | None]) -> Callable[P, int | None]:
    """The options that say where and as whom to ask the web, for `open_api`."""
    return url_option(token_file_option(plaintext_option(json_option(function))))


def open_api(url: str | None, token_file: Path | None, *, insecure_plaintext: bool) -> ApiClient:
    """The API of the web that these options choose, to be used as a context manager."""
    credentials = read_credentials(token_file or default_path())
    chosen = choose_url(credentials, url, insecure_plaintext=insecure_plaintext)
    return ApiClient(chosen, credentials.token)


def asks_web(function: Callable[Concatenate[ApiClient, Output, P], int | None]) -> Callable[P, int | None]:
    """A command that asks the web: gets an `Api` and an `Output` before its own parameters."""

    @web_options
    @wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> int | None:
        url, token_file = kwargs.pop("url"), kwargs.pop("token_file")
        insecure_plaintext, as_json = bool(kwargs.pop("insecure_plaintext")), bool(kwargs.pop("as_json"))
        where = url if isinstance(url, str) else None, token_file if isinstance(token_file, Path) else None
        with open_api(*where, insecure_plaintext=insecure_plaintext) as api:
            return function(api, Output(as_json=as_json), *args, **kwargs)

    return command
