"""Metrics by name, in JSON columns, instead of a column for each metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alembic import op
from sqlalchemy import Column, Connection, MetaData, Table, Text, and_, bindparam, inspect, select, tuple_
from sqlalchemy.dialects.mysql import MEDIUMTEXT

revision = "0003"
down_revision = "0002"

LONG_TEXT = Text().with_variant(MEDIUMTEXT(), "mysql")
ADDED = {"tasks": ("metrics",), "rounds": ("train_metrics", "metrics", "class_metrics")}
REMOVED = {"tasks": ("loss", "accuracy"), "rounds": ("train_loss", "loss", "accuracy", "recall", "auc")}
KEYS = {"tasks": ("number",), "rounds": ("task", "round")}
NUMBERS = ("accuracy", "loss", "auc", "train_loss")
BLOCK = 1000


def upgrade() -> None:
    """Do what has not been done: MySQL commits each statement, so this may continue an interrupted migration."""
    bind = op.get_bind()
    for name in ("tasks", "rounds"):
        columns = {column["name"] for column in inspect(bind).get_columns(name)}
        for added in ADDED[name]:
            if added not in columns:
                op.add_column(name, Column(added, LONG_TEXT))
        # The first column is dropped only after every row has been converted.
        if columns.issuperset(REMOVED[name]):
            _convert(bind, name)
        for removed in REMOVED[name]:
            if removed in columns:
                op.drop_column(name, removed)


def _convert(bind: Connection, name: str) -> None:
    table = Table(name, MetaData(), autoload_with=bind)
    keys = [table.c[key] for key in KEYS[name]]
    change = (
        table.update()
        .where(and_(*(key == bindparam(f"key_{key.name}") for key in keys)))
        .values({added: bindparam(f"new_{added}") for added in ADDED[name]})
    )
    query = select(*keys, *(table.c[removed] for removed in REMOVED[name])).order_by(*keys).limit(BLOCK)
    last: tuple[Any, ...] | None = None
    while rows := bind.execute(query if last is None else query.where(tuple_(*keys) > last)).mappings().all():
        last = tuple(rows[-1][key.name] for key in keys)
        bind.execute(
            change,
            [
                {f"key_{key.name}": row[key.name] for key in keys}
                | {f"new_{added}": text for added, text in _metrics(row).items() if added in ADDED[name]}
                for row in rows
            ],
        )


def _metrics(row: Mapping[Any, Any]) -> dict[str, str | None]:
    """The new columns of a row; NULL for missing values."""
    numbers = {name: None if (value := row.get(name)) is None else float(value) for name in NUMBERS}
    tested = numbers["loss"] is not None or numbers["accuracy"] is not None
    metrics = {name: numbers[name] for name in ("accuracy", "loss")} if tested else {}
    if numbers["auc"] is not None:
        metrics["auc"] = numbers["auc"]
    recall, train_loss = row.get("recall"), numbers["train_loss"]
    found = {
        "train_metrics": {"train_loss": train_loss} if train_loss is not None else {},
        "metrics": metrics,
        "class_metrics": {"recall": json.loads(recall)} if recall is not None else {},
    }
    return {name: json.dumps(values, separators=(",", ":")) if values else None for name, values in found.items()}
