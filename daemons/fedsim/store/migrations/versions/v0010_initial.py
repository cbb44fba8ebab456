"""What a task's first model comes from."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, inspect

from fedsim.store.schema import LongText

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    known = {column["name"] for column in inspect(op.get_bind()).get_columns("tasks")}
    if "initial" not in known:
        op.add_column("tasks", Column("initial", LongText))
