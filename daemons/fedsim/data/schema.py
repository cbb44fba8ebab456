"""The schemas of data sets: from a table's columns and configuration, or from the arrays themselves."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

import numpy as np

from fedsim.data.table_options import TableOptions
from fedsim.data_schema import MAX_FEATURES, MAX_NAME_CHARACTERS, DataSchema
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples

USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
LARGEST_PLAIN = 200.0
"""Features beyond this are reported: gradients grow with their square."""
IMAGE_LAYOUTS = {2: "H W", 3: "C H W"}


def table_schema(data_set: str, options: TableOptions, columns: Sequence[str], num_classes: int) -> DataSchema:
    """The schema of a table with these feature columns; raises `BadInput` if a name cannot be announced."""
    for name in (*columns, *options.labels, *options.target_columns):
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise BadInput(
                f"{data_set}: the name {name[:40]!r} has {len(name)} characters or cannot be printed; "
                f"names of columns and labels are printable and have at most {MAX_NAME_CHARACTERS} characters"
            )
    if len(columns) > MAX_FEATURES:
        raise BadInput(f"{data_set}: {len(columns)} columns; a table has at most {MAX_FEATURES}")
    words: list[list[str]] = [[] for _ in range(num_classes)]
    for word, number in options.labels.items():
        words[number].append(word)
    labels = list(map(str, range(num_classes)))
    if options.labels:
        labels = [" / ".join(sorted(of_class)) for of_class in words]
    elif options.targets != "classes":
        labels = options.target_columns
    schema = DataSchema(
        kind="table",
        features=tuple(columns),
        targets=options.targets,
        scaling="values" if options.scale_values else options.scale,
        scale_values=options.scale_values,
    )
    return schema.with_words(labels)


def array_schema(dataset: DataSet) -> DataSchema:
    """The schema of arrays, whose features have no names: two or three dimensions are images."""
    shape = dataset.feature_shape
    if len(shape) not in IMAGE_LAYOUTS:
        return DataSchema(kind="arrays", targets=dataset.train.targets)
    low, high = _bounds(dataset.train)
    usual = next((bounds for bounds in USUAL_RANGES if bounds[0] <= low and high <= bounds[1]), None)
    channels = 1 if len(shape) == 2 else shape[0]
    return DataSchema(
        kind="images",
        layout=IMAGE_LAYOUTS[len(shape)],
        channels=channels,
        value_range=usual,
        targets=dataset.train.targets,
    )


def scale_notes(dataset: DataSet) -> tuple[str, ...]:
    """What is to be said about features that are far out of scale: of the largest one, its order of magnitude."""
    train, schema = dataset.train, dataset.data_schema
    largest = max(map(abs, _bounds(train)))
    if largest <= LARGEST_PLAIN or (schema is not None and schema.kind == "text"):
        return ()
    what = "features reach"
    if schema is not None and schema.features:
        highest = np.maximum(train.features.max(axis=0), -train.features.min(axis=0))
        what = f"the column {schema.features[int(np.argmax(highest))]} reaches"
    advice = "divide them, or store them as uint8" if schema is not None and schema.kind == "images" else "set `scale`"
    return (f"{what} values in the order of 1e{floor(log10(largest))}, with which training hardly works: {advice}",)


def _bounds(examples: Examples) -> tuple[float, float]:
    """The least and the greatest value of all features, as a model receives them."""
    return float(examples.features.min()) / examples.scale, float(examples.features.max()) / examples.scale
