"""Idempotent submissions, and attempts of any kind with their expiry instead of failed log-ins only."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import Column, Double, Index, Integer, MetaData, String, Table, inspect

revision = "0002"
down_revision = "0001"

OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
UNIQUE = "ix_tasks_user_id_submission"

metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})

attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key_hash", String(64), nullable=False),
    Column("until", Double, nullable=False, index=True),
    Index(None, "key_hash", "until"),
    **OPTIONS,
)


def upgrade() -> None:
    """Create what does not exist: MySQL commits each statement, so this may continue an interrupted migration."""
    bind = op.get_bind()
    there = inspect(bind)
    if "submission" not in {column["name"] for column in there.get_columns("tasks")}:
        op.add_column("tasks", Column("submission", String(64)))
    if UNIQUE not in {index["name"] for index in there.get_indexes("tasks")}:
        op.create_index(UNIQUE, "tasks", ["user_id", "submission"], unique=True)
    metadata.create_all(bind, checkfirst=True)
    for index in sorted(attempts.indexes, key=lambda index: str(index.name)):
        index.create(bind, checkfirst=True)
    if there.has_table("login_failures"):
        op.drop_table("login_failures")  # its content expired within minutes
