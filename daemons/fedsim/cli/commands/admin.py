"""`fedsim admin`: accounts and schema, directly in the database. It creates the first administrator of an installation.

Run it on the web's machine as the user of the daemons, which could not write to a SQLite file created by root.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from fedsim.cli.options import json_option
from fedsim.cli.output import Output, moment
from fedsim.errors import BadInput, NotThere

if TYPE_CHECKING:
    from fedsim.store import Store
    from fedsim.store.records import User, UserState

P = ParamSpec("P")
OPERATOR = "command line"


@contextmanager
def _open_store(config_path: Path) -> Iterator[Store]:
    """Open the database that `web.yml` configures."""
    import structlog  # noqa: PLC0415 - with the database layer it takes half a second that other commands need not wait

    from fedsim.config import WebConfig, load_config  # noqa: PLC0415 - as above
    from fedsim.store import open_store  # noqa: PLC0415 - as above

    # The log messages of `web.accounts` are for a daemon's journal; here the command prints the result.
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        config = load_config(config_path, WebConfig)
        store = open_store(config.database, config.database_password_file)
        try:
            yield store
        finally:
            store.close()
    finally:
        structlog.configure(**before)


def _on_store(function: Callable[Concatenate[Store, Output, P], None]) -> Callable[P, None]:
    """Decorate a command on the database: a `Store` and an `Output` are passed before its own parameters."""

    @click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=Path("/etc/fedsim/web.yml"),
        show_default=True,
        help="The web's configuration file, with the address of the database.",
    )
    @json_option
    @wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        config_path, as_json = kwargs.pop("config_path"), bool(kwargs.pop("as_json"))
        with _open_store(Path(str(config_path))) as store:
            function(store, Output(as_json=as_json), *args, **kwargs)

    return command


def create_administrator(config_path: Path, name: str, password: str) -> User:
    """Create an administrator in the database that `web.yml` configures; raises `BadInput` with what is wrong."""
    with _open_store(config_path) as store:
        store.check()
        return _create_administrator(store, name, password)


def _create_administrator(store: Store, name: str, password: str, *, must_change: bool = False) -> User:
    from fedsim.web import accounts  # noqa: PLC0415 - see _open_store
    from fedsim.web.errors import Fault  # noqa: PLC0415 - see _open_store

    try:
        return accounts.create_admin(store, name, password, now=time.time(), must_change=must_change)
    except Fault as fault:
        problems = [f"{field}: {text}" for field, text in fault.problems.items()]
        raise BadInput("\n  ".join([str(fault), *problems])) from fault


@click.group()
def admin() -> None:
    """Manage accounts and schema, directly in the database of the web on this machine.

    Run it as the user of the daemons, for example: sudo -u fedsim fedsim admin create NAME
    """


@admin.command()
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--must-change-password", is_flag=True, help="The password must be changed at the first log-in.")
@_on_store
def create(store: Store, out: Output, name: str, password_stdin: bool, must_change_password: bool) -> None:
    """Create the administrator NAME."""
    store.check()
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt="The password again", err=True)
    user = _create_administrator(store, name, password, must_change=must_change_password)
    _tell(out, user, f"{user.name} is an administrator now.")


@admin.command("reset-password")
@click.argument("name")
@_on_store
def reset_password(store: Store, out: Output, name: str) -> None:
    """Set and print a generated password for the user NAME; the user's sessions and tokens are revoked."""
    from fedsim.web import accounts  # noqa: PLC0415 - see _open_store

    user = _find(store, name)
    password = accounts.reset_password(store, user, by=_operator(user), now=time.time())
    if out.as_json:
        out.document({"user": _plain_user(user), "password": password})
    else:
        out.note(f"The new password of {user.name}, which must be changed at the next log-in:")
        click.echo(password)


@admin.command("remove-second-factor")
@click.argument("name")
@_on_store
def remove_second_factor(store: Store, out: Output, name: str) -> None:
    """Remove the second factor of the user NAME, who has lost it."""
    from fedsim.web import accounts  # noqa: PLC0415 - see _open_store

    user = _find(store, name)
    accounts.set_second_factor(store, user, None, by=_operator(user), now=time.time())
    _tell(out, _find(store, name), f"{user.name} has no second factor now.")


@admin.command()
@click.argument("name")
@_on_store
def disable(store: Store, out: Output, name: str) -> None:
    """Disable the user NAME: sessions and tokens are revoked, tasks are kept."""
    from fedsim.store.records import UserState  # noqa: PLC0415 - see _open_store

    _set_state(store, out, name, UserState.DISABLED)


@admin.command()
@click.argument("name")
@_on_store
def enable(store: Store, out: Output, name: str) -> None:
    """Enable the user NAME, after registration or after having been disabled."""
    from fedsim.store.records import UserState  # noqa: PLC0415 - see _open_store

    _set_state(store, out, name, UserState.ACTIVE)


@admin.command()
@_on_store
def users(store: Store, out: Output) -> None:
    """List all users."""
    found = store.users.all()
    if out.as_json:
        out.document({"users": [_plain_user(user) for user in found]})
    elif found:
        rows = [(user.name, user.role.value, user.state.value, moment(user.created_at)) for user in found]
        out.table(["name", "role", "state", "made"], rows)
    else:
        out.note("There are no users yet. Create the first administrator with: fedsim admin create NAME")


@admin.command()
@click.option("--user", metavar="NAME", help="An account of the database that may create and alter tables.")
@click.option("--password-file", metavar="FILE", help="A file with its password, or the name of a credential.")
@_on_store
def migrate(store: Store, out: Output, user: str | None, password_file: str | None) -> None:
    """Create the tables of the database, or migrate them to this version.

    Without --user the account is that of the configuration, which needs all privileges for that.
    """
    store.migrate(user, None if password_file is None else Path(password_file))
    if out.as_json:
        out.document({"migrated": True})
    else:
        out.say("The database is up to date.")


@admin.command()
@click.option("--forget", metavar="NAME", help="Let the digest of this data set be learnt again.")
@_on_store
def datasets(store: Store, out: Output, forget: str | None) -> None:
    """List the data sets that several nodes hold, with their digests.

    The digest of each was learnt when two nodes had announced the same. A node that announces another one takes no part
    in tasks with this data set, except where each node has its own.
    """
    if forget is not None and not store.datasets.forget(forget):
        known = ", ".join(pinned.name for pinned in store.datasets.all()) or "none"
        raise NotThere(f"Unknown data set {forget!r} (available: {known})")
    found = store.datasets.all()
    if out.as_json:
        out.document({"datasets": [{"name": p.name, "digest": p.digest, "pinned_at": p.pinned_at} for p in found]})
        return
    if forget is not None:
        out.say(f"The digest of {forget} is learnt again when two nodes announce the same.")
    elif found:
        out.table(["name", "digest", "since"], [(p.name, p.digest, moment(p.pinned_at)) for p in found])
    else:
        out.note("No data set is held by several nodes yet.")


def _find(store: Store, name: str) -> User:
    user = store.users.by_name(name)
    if user is None:
        known = ", ".join(user.name for user in store.users.all()) or "none"
        raise NotThere(f"Unknown user {name!r} (available: {known})")
    return user


def _operator(like: User) -> User:
    """The author of changes in the event log: an operator with access to the database, without an account."""
    return replace(like, id=0, name=OPERATOR)


def _set_state(store: Store, out: Output, name: str, state: UserState) -> None:
    from fedsim.web import accounts  # noqa: PLC0415 - see _open_store

    user = _find(store, name)
    accounts.change_user(store, user, by=_operator(user), state=state, role=None, now=time.time())
    _tell(out, _find(store, name), f"{user.name} is {state.value} now.")


def _tell(out: Output, user: User, text: str) -> None:
    if out.as_json:
        out.document({"user": _plain_user(user)})
    else:
        out.say(text)


def _plain_user(user: User) -> dict[str, Any]:
    """A user without the password's hash."""
    return {
        "id": user.id,
        "name": user.name,
        "role": user.role.value,
        "state": user.state.value,
        "created_at": user.created_at,
        "second_factor": user.totp_secret is not None,
    }
