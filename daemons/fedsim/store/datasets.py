"""The digests of data sets that several nodes hold: learnt once, so that no node can replace the data of all."""

from __future__ import annotations

from sqlalchemy import delete, exc, insert, select

from fedsim.store.connections import Database
from fedsim.store.records import PinnedDataSet
from fedsim.store.rows import to_record, to_values
from fedsim.store.schema import datasets


class DataSetStore:
    """The table of pinned data sets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pin(self, pinned: PinnedDataSet) -> bool:
        """Pin a digest; False, and nothing changes, if the name has one."""
        with self._database.writing() as connection:
            try:
                connection.execute(insert(datasets).values(to_values(pinned)))
            except exc.IntegrityError:
                return False
            return True

    def forget(self, name: str) -> bool:
        """Remove the digest of a name, so that it is learnt again; False if it has none."""
        with self._database.writing() as connection:
            return connection.execute(delete(datasets).where(datasets.c.name == name)).rowcount == 1

    def all(self) -> list[PinnedDataSet]:
        """All pinned data sets, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(datasets).order_by(datasets.c.name)).mappings()
            return [to_record(PinnedDataSet, row) for row in rows]
