"""Conversion between the rows of tables and records, by the names of their fields.

The column types of `schema` convert single values (enumerations, tuples, JSON), so a record has the values of its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


@cache
def field_names(record_type: type[DataclassInstance]) -> tuple[str, ...]:
    """The fields of a record, in the order of their declaration."""
    return tuple(field.name for field in fields(record_type))


def to_record(record_type: type[R], row: Mapping[Any, Any]) -> R:
    """The record in a row (`Result.mappings()`), which can have further columns."""
    return record_type(**{name: row[name] for name in field_names(record_type)})


def to_values(record: DataclassInstance, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A record as the values of its row's columns, except those named in `without`."""
    return {name: getattr(record, name) for name in field_names(type(record)) if name not in without}
