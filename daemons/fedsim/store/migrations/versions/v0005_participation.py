"""Who took part in a task, remarks on its data and course, and from what it can be resumed."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, String, Text, inspect
from sqlalchemy.dialects.mysql import MEDIUMTEXT

revision = "0005"
down_revision = "0004"

LONG_TEXT = Text().with_variant(MEDIUMTEXT(), "mysql")


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    columns = {column["name"] for column in inspect(op.get_bind()).get_columns("tasks")}
    for name in ("left_out", "notes", "participation", "resume_problem"):
        if name not in columns:
            op.add_column("tasks", Column(name, LONG_TEXT))
    if "resume_uid" not in columns:
        op.add_column("tasks", Column("resume_uid", String(32)))
    if "resume_round" not in columns:
        op.add_column("tasks", Column("resume_round", Integer))
