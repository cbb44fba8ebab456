"""What nodes reported of their data in tasks that gather statistics."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, inspect

from fedsim.store.schema import LongText

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the column if it is missing: MySQL commits each statement."""
    columns = {column["name"] for column in inspect(op.get_bind()).get_columns("tasks")}
    if "statistics" not in columns:
        op.add_column("tasks", Column("statistics", LongText))
