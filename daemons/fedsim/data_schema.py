"""The schema of a data set: what its numbers mean. Nodes announce it, and the server compares it when it plans a task.

Equal shapes do not make equal features: columns can be in another order, scaled in another way, or be other columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_FEATURES = 100_000
MAX_NAME_CHARACTERS = 300
MAX_LABELS = 10**5
MAX_ALPHABET = 20_000
SHOWN_NAMES = 10

FeatureName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
LabelWord = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
Rule = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]

Targets = Literal["classes", "tokens", "mask", "numbers", "flags"]
TARGETS: dict[Targets, str] = {
    "classes": "one class of each example",
    "tokens": "a class at each place of a sequence",
    "mask": "a class of each pixel",
    "numbers": "numbers",
    "flags": "flags, each 0 or 1",
}
"""Kinds of targets, for people."""
NAMED_TARGETS = frozenset({"numbers", "flags"})
"""Kinds of targets in which each output of a model is one column of the data."""

COMMON = "common"
SCALINGS = {
    "none": "none, as in the file",
    "standard": "standard, fitted on each node's own training rows",
    "minmax": "minmax, fitted on each node's own training rows",
    COMMON: "common, standard by the sums of all nodes together",
    "values": "fixed values",
}
"""Scaling rules with the source of their numbers, for people."""


class DataSchema(BaseModel):
    """What the numbers of a data set mean: its features, and the words of its classes.

    A table has named features, images a layout and a range of values, text an alphabet, other arrays only their shape.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["table", "images", "text", "arrays"]
    features: Annotated[tuple[FeatureName, ...], Field(max_length=MAX_FEATURES)] = Field(
        (), description="Names of a table's features, in the order of its columns"
    )
    feature_type: Rule = Field("number", description="What the cells of a table's features are")
    scaling: Rule = Field("none", description="How a table's features are scaled, see `SCALINGS`")
    scale_values: Annotated[dict[FeatureName, tuple[Finite, Finite]], Field(max_length=MAX_FEATURES)] = Field(
        {}, description="With fixed scaling: what is subtracted from a feature, and by what it is divided"
    )
    layout: Annotated[str, Field(max_length=40)] = Field("", description="Order of an image's dimensions: H W or C H W")
    channels: Annotated[int, Field(ge=0, le=10**6)] = Field(0, description="Number of an image's channels")
    value_range: tuple[Finite, Finite] | None = Field(
        None, description="The usual range that holds an image's values: 0 to 1, -1 to 1 or 0 to 255"
    )
    alphabet: Annotated[str, Field(max_length=MAX_ALPHABET)] = Field(
        "", description="The characters of a text's symbols, from 1 on; 0 is any other one"
    )
    targets: Targets = Field("classes", description="What is predicted, see `TARGETS`")
    labels: Annotated[tuple[LabelWord, ...], Field(max_length=MAX_LABELS)] = Field(
        (), description="The word of each class, or the name of each number or flag, in their order; empty: 0, 1, …"
    )

    @field_validator("features")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("must name each feature once")
        return names

    def words(self, num_classes: int) -> tuple[str, ...]:
        """The word of each class; the number itself where the data set has no words."""
        return self.labels or tuple(map(str, range(num_classes)))

    def with_words(self, words: Sequence[str]) -> DataSchema:
        """This schema with other words; plain numbers are not listed."""
        plain = all(word == str(number) for number, word in enumerate(words))
        return self.model_copy(update={"labels": () if plain else tuple(words)})

    @property
    def least_outputs(self) -> int:
        """The least number of classes, or of numbers or flags."""
        return 1 if self.targets in NAMED_TARGETS else 2

    @property
    def features_key(self) -> str:
        """Equal for schemas whose features mean the same, in whatever order they are."""
        labels = self.labels if self.targets in NAMED_TARGETS else ()
        ordered = self.model_copy(update={"features": tuple(sorted(self.features)), "labels": labels})
        return ordered.model_dump_json()

    @property
    def scaling_text(self) -> str:
        """The scaling with the source of its numbers, for people."""
        return SCALINGS.get(self.scaling, self.scaling)

    @property
    def summary(self) -> str:
        """What the data set holds, in a few words."""
        if self.kind == "table":
            return f"a table with the columns {some(self.features)}"
        if self.kind == "images":
            values = "of any value" if self.value_range is None else "from {:g} to {:g}".format(*self.value_range)
            return f"images ({self.layout}, {self.channels} channel{'s' if self.channels != 1 else ''}, {values})"
        if self.kind == "text":
            return f"text with an alphabet of {len(self.alphabet)} characters"
        return "arrays without names of features"

    def difference(self, other: DataSchema, *, whose: str = "the task's data", scaling: bool = True) -> str:
        """How the features of this data set differ from those of `other`, in words; "" if only their order does.

        Args:
            other: the schema to compare with.
            whose: what the other data set is called.
            scaling: whether the scaling counts.
        """
        if self.kind != other.kind:
            return f"holds {self.summary}, {whose} {other.summary}"
        if self.targets != other.targets:
            return f"predicts {TARGETS[self.targets]}, {whose} {TARGETS[other.targets]}"
        if self.targets in NAMED_TARGETS and self.labels != other.labels:
            return f"predicts {some(self.labels) or '0, 1, …'}, {whose} {some(other.labels) or '0, 1, …'}"
        own, its = set(self.features), set(other.features)
        extra = [name for name in self.features if name not in its]
        if missing := [name for name in other.features if name not in own]:
            further = f" and has {some(extra)} instead" if extra else ""
            return f"lacks the columns {some(missing)} of {whose}{further}"
        if extra:
            return f"has the columns {some(extra)}, which {whose} does not have"
        if self.feature_type != other.feature_type:
            return f"has features of the type {self.feature_type}, {whose} {other.feature_type}"
        if scaling and (text := self.scaling_difference(other, whose)):
            return text
        if (self.layout, self.channels, self.value_range) != (other.layout, other.channels, other.value_range):
            return f"holds {self.summary}, {whose} {other.summary}"
        if self.alphabet != other.alphabet:
            return self._other_alphabet(other, whose)
        return ""

    def _other_alphabet(self, other: DataSchema, whose: str) -> str:
        own = [repr(char) for char in self.alphabet if char not in other.alphabet]
        lacking = [repr(char) for char in other.alphabet if char not in self.alphabet]
        if own or lacking:
            differ = f"has {some(own)}" if own else f"lacks {some(lacking)}"
            return f"holds {self.summary} that {differ}, {whose} {other.summary}"
        return f"has the characters of its alphabet in another order than {whose}"

    def scaling_difference(self, other: DataSchema, whose: str) -> str:
        """How the scaling of this data set differs from that of `other`, in words; "" if it does not."""
        if self.scaling != other.scaling:
            return f"has the scaling “{self.scaling_text}”, {whose} “{other.scaling_text}”"
        for name in sorted({*self.scale_values, *other.scale_values}):
            values, its = (schema.scale_values.get(name, (0.0, 1.0)) for schema in (self, other))
            if values != its:
                return f"scales {name} by {list(values)}, {whose} by {list(its)}"
        return ""


def some(names: Sequence[str], most: int = SHOWN_NAMES) -> str:
    """Join the names; of many only the first."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unknown_words(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """The words of classes that are not among the known ones; a number without a word is not a class."""
    those = set(known)
    return [word for word in words if word and word not in those]
