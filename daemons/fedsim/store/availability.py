"""The wait of a daemon for its database."""

from __future__ import annotations

from fedsim.errors import Unavailable
from fedsim.log import get_logger
from fedsim.store.store import Store


class DatabaseCheck:
    """Whether the database can be used; why not is logged once, and again when the reason changes.

    Args:
        store: of the database.
        migrate: bring its tables up to date first.
    """

    def __init__(self, store: Store, *, migrate: bool) -> None:
        self._store = store
        self._migrate = migrate
        self._reported = ""

    def require(self) -> None:
        """Raise `Unavailable` if the database cannot be used yet."""
        try:
            if self._migrate:
                self._store.migrate()
            self._store.check()
        except Unavailable as error:
            if str(error) != self._reported:
                self._reported = str(error)
                get_logger().warning("waiting_for_database", problem=self._reported)
            raise Unavailable(f"waiting for the database: {error}") from error
        self._reported = ""
