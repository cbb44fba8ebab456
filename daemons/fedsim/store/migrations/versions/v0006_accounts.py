"""Accounts: passwords that must be changed, second factors, what is known of sessions, tokens that expire."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Double, String, Text, false, inspect
from sqlalchemy.dialects.mysql import MEDIUMTEXT

revision = "0006"
down_revision = "0005"

LONG_TEXT = Text().with_variant(MEDIUMTEXT(), "mysql")


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    added: dict[str, list[Column[Any]]] = {
        "users": [
            Column("must_change_password", Boolean, nullable=False, server_default=false()),
            Column("totp_secret", String(64)),
            Column("totp_step", BigInteger),
            Column("openid_key", String(64)),
        ],
        "sessions": [Column("used_at", Double), Column("address", String(64)), Column("browser", LONG_TEXT)],
        "tokens": [Column("expires_at", Double)],
    }
    for table, columns in added.items():
        existing = {column["name"] for column in inspect(op.get_bind()).get_columns(table)}
        for column in columns:
            if column.name not in existing:
                op.add_column(table, column)
    if "uq_users_openid_key" not in {item["name"] for item in inspect(op.get_bind()).get_unique_constraints("users")}:
        with op.batch_alter_table("users") as users:
            users.create_unique_constraint("uq_users_openid_key", ["openid_key"])
