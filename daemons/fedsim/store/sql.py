"""The one class that answers every question of `interface.Store`, put together from a module for each subject."""

from __future__ import annotations

from pathlib import Path

from fedsim.config.database import parse_url
from fedsim.config.secrets import find_secret
from fedsim.errors import ConfigError
from fedsim.store.events import Events
from fedsim.store.rounds import Rounds
from fedsim.store.schema_version import VersionedDatabase
from fedsim.store.tasks import Tasks
from fedsim.store.users import Users


class SqlStore(VersionedDatabase, Users, Tasks, Rounds, Events):
    """`interface.Store` on SQLite, MySQL or MariaDB; one for each process, used by all of its threads."""


def open_store(url: str, password_file: Path | None = None) -> SqlStore:
    """A store on the database at `url`; it connects when it is first asked something, `check` for instance.

    Args:
        url: an SQLAlchemy URL without a password, as sqlite:////var/lib/fedsim/fedsim.db or mysql://fedsim@host/fedsim.
        password_file: a file that holds only the password, or a credential's name; read again for each new connection.

    Raises:
        ConfigError: if `url` is no address of a database that fedsim knows, or the password cannot be read.
    """
    try:
        parsed = parse_url(url)
    except ValueError as error:
        raise ConfigError("database", [str(error)]) from error
    if password_file is not None:
        try:
            find_secret(password_file).read_bytes()
        except OSError as error:
            problem = f"{password_file} cannot be read: {error.strerror}"
            raise ConfigError("database_password_file", [problem]) from error
    return SqlStore(parsed, password_file)
