"""The database: `Store` with a part for each kind of row, `records` that it takes and returns, and the migrations."""

from fedsim.store.store import Store, open_store

__all__ = ["Store", "open_store"]
