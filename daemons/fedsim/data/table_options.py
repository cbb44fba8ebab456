"""The options of tables, as a data set in `client.yml` gives them."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedsim.plugins import PluginOptions


def _as_text(value: Any) -> Any:
    """Accept a number as its text; YAML reads a plain `no` as false, and a plain `1` as a number."""
    if isinstance(value, bool):
        words = "yes, on and true" if value else "no, off and false"
        raise ValueError(f"must be in quotes: YAML reads {words} as {str(value).lower()}")  # noqa: TRY004 - pydantic's
    return composed(str(value)) if isinstance(value, str | int | float) else value


def composed(text: str) -> str:
    """The one form of a text that Unicode can write in several."""
    return unicodedata.normalize("NFC", text)


def _text_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    keys = [_as_text(key) for key in value]
    if len(set(keys)) < len(keys):
        raise ValueError("names a label twice")
    return dict(zip(keys, value.values(), strict=True))


def _one_character(text: str) -> str:
    names = {"tab": "\t", "\\t": "\t"}
    found = names.get(text, text)
    if len(found) != 1 or found in '"\r\n':
        raise ValueError(f"{text!r} must be one character, such as ';', or tab")
    return found


TextValue = Annotated[str, BeforeValidator(_as_text)]
TextList = Annotated[
    list[TextValue], BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given])
]


class TableOptions(PluginOptions):
    """Options of every table."""

    label_column: TextValue | None = Field(None, title="label column", description="The column with the class")
    id_column: TextValue | None = Field(
        None, title="id column", description='A column to ignore; "" is the one without a name'
    )
    client_column: TextValue | None = Field(
        None, title="client column", description="The column that says to which client of `natural` a row belongs"
    )
    labels: Annotated[dict[str, int], BeforeValidator(_text_keys)] = Field(
        {}, title="labels", description="Class number of each label in the file, if labels are not 0, 1 …"
    )
    scale: Literal["none", "standard", "minmax", "common"] = Field(
        "none",
        title="scale",
        description="Scaling, fitted on this node's training rows; common: on those of all nodes",
    )
    scale_values: Annotated[dict[str, tuple[float, float]], BeforeValidator(_text_keys)] = Field(
        {}, title="scale values", description="Fixed scaling, column: [subtract, divide by]"
    )
    missing: Literal["error", "drop", "mean"] = Field(
        "error", title="missing", description="What happens to a row with a missing value"
    )
    missing_values: TextList = Field(
        [],
        title="missing values",
        description="Further marks of a missing value, as [-999, unknown]; an empty cell, ?, ., NA, NaN, NULL, \\N, "
        "#N/A and other errors of spreadsheets always are",
    )
    targets: Literal["classes", "numbers", "flags"] = Field(
        "classes", title="targets", description="What is predicted: a class, numbers, or flags that are 0 or 1"
    )
    label_columns: TextList = Field(
        [],
        title="label columns",
        description="With numbers and flags: the columns, instead of label_column, if several",
    )

    @property
    def target_columns(self) -> list[str]:
        """The columns that are predicted."""
        return self.label_columns or ([] if self.label_column is None else [self.label_column])

    @model_validator(mode="after")
    def _one_kind_of_target(self) -> TableOptions:
        if self.targets == "classes" and self.label_columns:
            raise ValueError("label_columns are for the targets numbers and flags; a class is in label_column")
        if self.targets != "classes" and self.labels:
            raise ValueError(f"labels are classes, and the targets are {self.targets}")
        if self.label_columns and self.label_column is not None:
            raise ValueError("set label_column or label_columns")
        return self


class TextOptions(TableOptions):
    """Options of tables in text."""

    separator: Annotated[str, AfterValidator(_one_character)] | None = Field(
        None, title="separator", description="Between the values, one character or tab; detected if omitted"
    )
    decimal: Literal[".", ","] | None = Field(
        None, title="decimal", description="Decimal mark of numbers, '.' or ','; detected if omitted"
    )
