"""The store: all statements that server, web and command line execute on the database, by table."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL

from fedsim.config.database import parse_url
from fedsim.config.secrets import find_secret
from fedsim.errors import ConfigError
from fedsim.store.attempts import AttemptStore
from fedsim.store.checkpoints import CheckpointStore
from fedsim.store.connections import Database
from fedsim.store.datasets import DataSetStore
from fedsim.store.events import EventStore
from fedsim.store.nodes import NodeStore
from fedsim.store.rounds import RoundStore
from fedsim.store.schema_version import check_schema, migrate_schema
from fedsim.store.sessions import SessionStore
from fedsim.store.statistics import StatisticsStore
from fedsim.store.tasks import TaskStore
from fedsim.store.tokens import TokenStore
from fedsim.store.users import UserStore


class Store:
    """The store on SQLite, MySQL or MariaDB; one for each process, used by all of its threads.

    Methods of every part raise `Unavailable` when the database does not answer.
    """

    def __init__(self, url: URL, password_file: Path | None) -> None:
        self.database = Database(url, password_file)
        self.users = UserStore(self.database)
        self.sessions = SessionStore(self.database)
        self.tokens = TokenStore(self.database)
        self.attempts = AttemptStore(self.database)
        self.tasks = TaskStore(self.database)
        self.rounds = RoundStore(self.database)
        self.checkpoints = CheckpointStore(self.database)
        self.nodes = NodeStore(self.database)
        self.datasets = DataSetStore(self.database)
        self.events = EventStore(self.database)
        self.statistics = StatisticsStore(self.database)

    def check(self) -> None:
        """Connect and compare the schema's version with the code's; see `check_schema`."""
        check_schema(self.database)

    def migrate(self, user: str | None = None, password_file: Path | None = None) -> None:
        """Migrate the schema to the code's version, with another account if one is given; see `migrate_schema`."""
        url, password = self.database.url, self.database.password_file
        migrate_schema(url if user is None else url.set(username=user), password_file or password)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()


def open_store(url: str, password_file: Path | None = None) -> Store:
    """Create a store for the database at `url`. It connects with the first statement, for example that of `check`.

    Args:
        url: an SQLAlchemy URL without a password, as sqlite:////var/lib/fedsim/fedsim.db or mysql://fedsim@host/fedsim.
        password_file: a file that holds only the password, or a credential's name; read again for each new connection.

    Raises:
        ConfigError: `url` is not the address of a supported database, or the password cannot be read.
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
    return Store(parsed, password_file)
