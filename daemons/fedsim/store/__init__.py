"""The database: what server and web ask of it (`interface`), and the one class that answers (`sql`)."""

from fedsim.store.sql import SqlStore, open_store

__all__ = ["SqlStore", "open_store"]
