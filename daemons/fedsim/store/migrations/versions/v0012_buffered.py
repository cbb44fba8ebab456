"""What asynchronous rounds summed, in which order."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, inspect

from fedsim.store.schema import LongText

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    known = {column["name"] for column in inspect(op.get_bind()).get_columns("rounds")}
    if "buffered" not in known:
        op.add_column("rounds", Column("buffered", LongText))
