"""The plan that a task was given, and the task whose plan it repeats."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, inspect

from fedsim.store.schema import LongText

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    known = {column["name"] for column in inspect(op.get_bind()).get_columns("tasks")}
    for column in (Column("repeats", Integer), Column("plan", LongText)):
        if column.name not in known:
            op.add_column("tasks", column)
