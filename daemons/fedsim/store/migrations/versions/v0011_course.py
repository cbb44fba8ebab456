"""The best round and the warning of a task; the missing share of a round's examples, and the tests on its nodes."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, inspect

from fedsim.store.schema import LongText, Real

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add what is missing: MySQL commits each statement, so this may continue an interrupted migration."""
    of_tasks = {column["name"] for column in inspect(op.get_bind()).get_columns("tasks")}
    if "best" not in of_tasks:
        op.add_column("tasks", Column("best", LongText))
    if "warning" not in of_tasks:
        op.add_column("tasks", Column("warning", LongText))
    of_rounds = {column["name"] for column in inspect(op.get_bind()).get_columns("rounds")}
    if "missing_share" not in of_rounds:
        op.add_column("rounds", Column("missing_share", Real))
    if "node_metrics" not in of_rounds:
        op.add_column("rounds", Column("node_metrics", LongText))
