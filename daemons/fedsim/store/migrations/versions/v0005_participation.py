"""Which nodes were online and took no part in a task, and remarks on its data and course."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text, inspect
from sqlalchemy.dialects.mysql import MEDIUMTEXT

revision = "0005"
down_revision = "0004"

LONG_TEXT = Text().with_variant(MEDIUMTEXT(), "mysql")


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    columns = {column["name"] for column in inspect(op.get_bind()).get_columns("tasks")}
    for added in ("left_out", "notes"):
        if added not in columns:
            op.add_column("tasks", Column(added, LONG_TEXT))
