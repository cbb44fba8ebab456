"""The first schema: users, sessions, tokens, tasks, rounds, checkpoints, nodes, events."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.mysql import MEDIUMTEXT

revision = "0001"
down_revision = None

LONG_TEXT = Text().with_variant(MEDIUMTEXT(), "mysql")
OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("name_key", String(255), nullable=False, unique=True),
    Column("password_hash", String(255), nullable=False),
    Column("role", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("language", String(35), nullable=False),
    Column("created_at", Double, nullable=False),
    **OPTIONS,
)

Table(
    "sessions",
    metadata,
    Column("id_hash", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("csrf", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    **OPTIONS,
)

Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("label", LONG_TEXT, nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("used_at", Double),
    **OPTIONS,
)

Table(
    "login_failures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key_hash", String(64), nullable=False),
    Column("at", Double, nullable=False, index=True),
    Index(None, "key_hash", "at"),
    **OPTIONS,
)

Table(
    "tasks",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", LONG_TEXT, nullable=False),
    Column("settings", LONG_TEXT, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("stop_requested", Boolean, nullable=False),
    Column("delete_requested", Boolean, nullable=False),
    Column("round", Integer, nullable=False),
    Column("loss", Double),
    Column("accuracy", Double),
    Column("phase", LONG_TEXT, nullable=False),
    Column("waiting_for", LONG_TEXT, nullable=False),
    Column("waiting_until", Double),
    Column("eta_seconds", Double),
    Column("nodes", LONG_TEXT, nullable=False),
    Column("digest", String(64)),
    sqlite_autoincrement=True,
    **OPTIONS,
)


Table(
    "rounds",
    metadata,
    Column("task", ForeignKey("tasks.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("num_examples", BigInteger, nullable=False),
    Column("train_loss", Double),
    Column("seconds", LONG_TEXT, nullable=False),
    Column("bytes_sent", BigInteger, nullable=False),
    Column("bytes_received", BigInteger, nullable=False),
    Column("cohort_size", Integer, nullable=False),
    Column("missing", LONG_TEXT, nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("loss", Double),
    Column("accuracy", Double),
    Column("recall", LONG_TEXT),
    Column("auc", Double),
    **OPTIONS,
)

Table(
    "checkpoints",
    metadata,
    Column("task", ForeignKey("tasks.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("path", LONG_TEXT, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("removed_at", Double),
    Column("removed_why", LONG_TEXT, nullable=False),
    **OPTIONS,
)

Table(
    "nodes",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("seen_at", Double, nullable=False),
    Column("hello", LONG_TEXT, nullable=False),
    **OPTIONS,
)

Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("text", LONG_TEXT, nullable=False),
    Column("task", Integer),
    Column("user", String(64)),
    Column("fields", LONG_TEXT, nullable=False),
    Index(None, "task", "at"),
    **OPTIONS,
)


def upgrade() -> None:
    """Create what does not exist: MySQL commits each statement, so this may continue an interrupted migration."""
    bind = op.get_bind()
    metadata.create_all(bind, checkfirst=True)
    for table in metadata.sorted_tables:
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            index.create(bind, checkfirst=True)
