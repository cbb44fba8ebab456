"""Settings of a task that belong to one plug-in are its options: `fedsim.legacy_settings` converts those of 0.1."""

from __future__ import annotations

import json

from alembic import op
from sqlalchemy import MetaData, Table, select

from fedsim.legacy_settings import settings_from_0_1

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Convert every row; converted rows are not changed."""
    bind = op.get_bind()
    tasks = Table("tasks", MetaData(), autoload_with=bind)
    for number, text in bind.execute(select(tasks.c.number, tasks.c.settings)).all():
        stored = json.loads(text)
        converted = settings_from_0_1(stored)
        if converted != stored:
            changed = json.dumps(converted, separators=(",", ":"))
            bind.execute(tasks.update().where(tasks.c.number == number).values(settings=changed))
