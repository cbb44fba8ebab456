"""What nodes and clients contributed to a round."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, inspect

from fedsim.store.schema import LongText

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column if it is missing: MySQL commits each statement."""
    columns = {column["name"] for column in inspect(op.get_bind()).get_columns("rounds")}
    if "contributions" not in columns:
        op.add_column("rounds", Column("contributions", LongText))
