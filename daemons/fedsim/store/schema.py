"""The tables, as the newest migration creates them; a test compares the two on both databases.

Text is compared byte by byte (utf8mb4_bin, SQLite's BINARY), so that uids and digests are exact; what must be found
regardless of case has a folded key of its own, the same on both databases. Times are float seconds (UTC).
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
)
from sqlalchemy.dialects.mysql import MEDIUMTEXT

from fedsim.initial import InitialModel
from fedsim.settings import TaskSettings
from fedsim.store.records import TaskState, UserRole, UserState

# MySQL's TEXT ends at 64 KiB: the missing clients of a large round, or a node's announcement, can be longer.
LongText = Text().with_variant(MEDIUMTEXT(), "mysql")
HASH = 64
UID = 32


def _finite(value: Any) -> Any:
    """`value` with None for every NaN and infinity, which neither JSON nor MySQL can store."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Real(TypeDecorator[float]):
    """A double; NaN and infinities become NULL, as a diverged model's loss must not prevent the row's insertion."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:  # noqa: ARG002 - SQLAlchemy's
        """Convert a number for the database."""
        return None if value is None else _finite(float(value))


class Json(TypeDecorator[Any]):
    """Any JSON value as text; None is NULL. The two databases' own JSON types differ in what they keep."""

    impl = LongText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        """Convert a Python value for the database."""
        return None if value is None else json.dumps(_finite(value), separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Convert a value from the database."""
        return None if value is None else json.loads(value)


class JsonTuple(Json):
    """A JSON array, read as a tuple; NULL is an empty one."""

    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Convert a value from the database."""
        return tuple(super().process_result_value(value, dialect) or ())


class JsonDict(Json):
    """A JSON object whose arrays are read as tuples. An empty one is NULL, so that an upsert keeps the old value."""

    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> str | None:
        """Convert a dictionary for the database."""
        return super().process_bind_param(value or None, dialect)

    def process_result_value(self, value: str | None, dialect: Dialect) -> dict[str, Any]:
        """Convert a value from the database."""
        stored = super().process_result_value(value, dialect) or {}
        return {name: tuple(item) if isinstance(item, list) else item for name, item in stored.items()}


class Word(TypeDecorator[StrEnum]):
    """A member of an enumeration, stored by its value."""

    impl = String(16)
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002
        """Convert a value from the database."""
        return None if value is None else self.words(value)


class SettingsJson(Json):
    """A task's settings. They were validated when they were written, and are not validated again.

    An old row remains readable: fields that were added later get their defaults, fields that no longer exist are
    ignored, and a model that is no longer installed is not an error.
    """

    cache_ok = True

    def process_bind_param(self, value: TaskSettings | None, dialect: Dialect) -> str | None:
        """Convert settings for the database."""
        return super().process_bind_param(None if value is None else value.model_dump(mode="json"), dialect)

    def process_result_value(self, value: str | None, dialect: Dialect) -> TaskSettings:
        """Convert settings from the database."""
        stored = super().process_result_value(value, dialect)
        names = [name for name in TaskSettings.model_fields if name in stored]
        lists = {name: tuple(stored[name]) for name in names if isinstance(stored[name], list)}
        return TaskSettings.model_construct(**{name: stored[name] for name in names} | lists)


class InitialJson(Json):
    """What a task's first model comes from; NULL: its own initialisation."""

    cache_ok = True

    def process_bind_param(self, value: InitialModel | None, dialect: Dialect) -> str | None:
        """Convert a record for the database."""
        return super().process_bind_param(None if value is None else value.model_dump(exclude_none=True), dialect)

    def process_result_value(self, value: str | None, dialect: Dialect) -> InitialModel | None:
        """Convert a value from the database."""
        stored = super().process_result_value(value, dialect)
        return None if stored is None else InitialModel.model_validate(stored)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("name_key", String(255), nullable=False, unique=True),
    Column("password_hash", String(255), nullable=False),
    Column("role", Word(UserRole), nullable=False),
    Column("state", Word(UserState), nullable=False),
    Column("language", String(35), nullable=False),
    Column("created_at", Real, nullable=False),
    Column("must_change_password", Boolean, nullable=False, server_default=false()),
    Column("totp_secret", String(64)),
    Column("totp_step", BigInteger),
    Column("openid_key", String(HASH), unique=True),
    **OPTIONS,
)

sessions = Table(
    "sessions",
    metadata,
    Column("id_hash", String(HASH), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("csrf", String(255), nullable=False),
    Column("created_at", Real, nullable=False),
    Column("expires_at", Real, nullable=False, index=True),
    Column("used_at", Real),
    Column("address", String(64)),
    Column("browser", LongText),
    **OPTIONS,
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("label", LongText, nullable=False),
    Column("token_hash", String(HASH), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("created_at", Real, nullable=False),
    Column("used_at", Real),
    Column("expires_at", Real),
    **OPTIONS,
)

# `key_hash`: people sometimes type passwords into the name field, so the names are not stored.
attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key_hash", String(HASH), nullable=False),
    Column("until", Real, nullable=False, index=True),
    Index(None, "key_hash", "until"),
    **OPTIONS,
)

tasks = Table(
    "tasks",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("uid", String(UID), nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("state", Word(TaskState), nullable=False, index=True),
    Column("reason", LongText, nullable=False),
    Column("settings", SettingsJson, nullable=False),
    Column("created_at", Real, nullable=False),
    Column("started_at", Real),
    Column("finished_at", Real),
    Column("stop_requested", Boolean, nullable=False),
    Column("delete_requested", Boolean, nullable=False),
    Column("round", Integer, nullable=False),
    Column("metrics", JsonDict),
    Column("phase", LongText, nullable=False),
    Column("waiting_for", JsonTuple, nullable=False),
    Column("waiting_until", Real),
    Column("eta_seconds", Real),
    Column("nodes", JsonTuple, nullable=False),
    Column("left_out", JsonDict),
    Column("notes", JsonTuple),
    Column("participation", JsonDict),
    Column("resume_uid", String(UID)),
    Column("resume_round", Integer),
    Column("resume_problem", LongText),
    Column("digest", String(HASH)),
    Column("submission", String(HASH)),  # identifies one submission of a user, which may arrive twice
    Column("repeats", Integer),  # no foreign key: that task may be deleted
    Column("plan", Json),
    Column("initial", InitialJson),
    Column("best", JsonDict),
    Column("warning", LongText),
    Column("statistics", Json),
    Index(None, "user_id", "submission", unique=True),
    sqlite_autoincrement=True,  # numbers are never reused, even after a task was deleted
    **OPTIONS,
)


def _task_column() -> Column[int]:
    return Column(
        "task", ForeignKey("tasks.number", ondelete="CASCADE"), primary_key=True, autoincrement=False, nullable=False
    )


rounds = Table(
    "rounds",
    metadata,
    _task_column(),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(HASH), nullable=False),
    Column("num_examples", BigInteger, nullable=False),
    Column("seconds", Json, nullable=False),
    Column("bytes_sent", BigInteger, nullable=False),
    Column("bytes_received", BigInteger, nullable=False),
    Column("cohort_size", Integer, nullable=False),
    Column("missing", JsonTuple, nullable=False),
    Column("finished_at", Real, nullable=False),
    Column("train_metrics", JsonDict),
    Column("metrics", JsonDict),
    Column("class_metrics", JsonDict),
    Column("screening", JsonTuple),
    Column("missing_share", Real),
    Column("node_metrics", JsonDict),
    Column("buffered", JsonTuple),
    Column("contributions", JsonDict),
    **OPTIONS,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _task_column(),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("path", LongText, nullable=False),
    Column("digest", String(HASH), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Real, nullable=False),
    Column("removed_at", Real),
    Column("removed_why", LongText, nullable=False),
    **OPTIONS,
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(HASH), primary_key=True),
    Column("digest", String(HASH), nullable=False),
    Column("pinned_at", Real, nullable=False),
    **OPTIONS,
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(HASH), primary_key=True),
    Column("seen_at", Real, nullable=False),
    Column("hello", Json, nullable=False),
    **OPTIONS,
)

# No foreign key: that a task was deleted is itself an event, recorded after its deletion.
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Real, nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("text", LongText, nullable=False),
    Column("task", Integer),
    Column("user", String(64)),
    Column("fields", Json, nullable=False),
    Index(None, "task", "at"),
    **OPTIONS,
)
