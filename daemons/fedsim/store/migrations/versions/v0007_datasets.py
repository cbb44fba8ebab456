"""The digests of data sets that several nodes hold."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Double, String, inspect

from fedsim.store.schema import OPTIONS

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    if "datasets" not in inspect(op.get_bind()).get_table_names():
        op.create_table(
            "datasets",
            Column("name", String(64), primary_key=True),
            Column("digest", String(64), nullable=False),
            Column("pinned_at", Double, nullable=False),
            **OPTIONS,
        )
