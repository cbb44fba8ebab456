"""What a screening found of the updates of each round."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, inspect

from fedsim.store.schema import LongText

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    known = {column["name"] for column in inspect(op.get_bind()).get_columns("rounds")}
    if "screening" not in known:
        op.add_column("rounds", Column("screening", LongText))
