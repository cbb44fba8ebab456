"""The database: `Store` with a part for each table, the `records` that it accepts and returns, and migrations."""

from fedsim.store.store import Store, open_store

__all__ = ["Store", "open_store"]
