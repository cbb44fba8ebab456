"""Brings data sets whose columns or classes are in another order into the order of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsim.data_schema import NAMED_TARGETS, DataSchema, unknown_words
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, IntArray


def conform(dataset: DataSet, schema: DataSchema, num_classes: int) -> DataSet:
    """Order the columns of a data set by the names of a task's schema, and number its labels by the task's words.

    Args:
        dataset: with its own schema; without one it is returned as it is.
        schema: the task's.
        num_classes: the task's.

    Raises:
        BadInput: its features or labels are not those of the task.
    """
    own = dataset.data_schema
    if own is None:
        return dataset
    words, known = own.words(dataset.num_classes), schema.words(num_classes)
    if different := own.difference(schema, scaling=False):
        raise BadInput(f"the data set {different}")
    if unknown := unknown_words(words, known):
        raise BadInput(f"the data set has the labels {', '.join(unknown)}; the task has {', '.join(known)}")
    position = {name: index for index, name in enumerate(own.features)}
    columns = np.array([position[name] for name in schema.features], np.int64)
    number = {word: index for index, word in enumerate(known)}
    numbers = np.array([number[word] if word else -1 for word in words], np.int64)
    plain = dataset.num_classes <= num_classes
    if np.array_equal(columns, np.arange(len(columns))) and plain and np.array_equal(numbers, np.arange(len(numbers))):
        return dataset
    ordered = own.model_copy(update={"features": schema.features, "labels": schema.labels})
    return DataSet(
        _ordered(dataset.train, columns, numbers),
        None if dataset.test is None else _ordered(dataset.test, columns, numbers),
        num_classes,
        ordered,
        None if dataset.held_out is None else _ordered(dataset.held_out, columns, numbers),
    )


def conform_all(datasets: Sequence[DataSet]) -> list[DataSet]:
    """Bring each node's own data set into the order of most, with the words of all; raises like `conform`."""
    schemas = [dataset.data_schema for dataset in datasets]
    known = [schema for schema in schemas if schema is not None]
    if len(known) < len(datasets):
        return list(datasets)
    first = most_common(["\n".join(schema.features) for schema in known])
    words = [schema.words(dataset.num_classes) for schema, dataset in zip(known, datasets, strict=True)]
    everyone = dict.fromkeys(word for own in (words[first], *words) for word in own)
    schema = known[first].with_words(tuple(everyone))
    return [conform(dataset, schema, max(len(everyone), schema.least_outputs)) for dataset in datasets]


def _ordered(examples: Examples, columns: IntArray, numbers: IntArray) -> Examples:
    features = examples.features if not len(columns) else np.ascontiguousarray(examples.features[:, columns])
    labels = examples.labels if examples.targets in NAMED_TARGETS else numbers[examples.labels]
    return replace(examples, features=features, labels=labels)


def task_words(words: Sequence[Sequence[str]], others: Sequence[str] = ()) -> tuple[str, ...]:
    """The words of a task's classes, in order: those of most data sets, and further ones that two data sets have.

    Of equally common words the fewer count, in their most common order, then the earlier ones: a class that only one
    data set has does not change the model of the others.

    Args:
        words: of each data set, which are in a fixed order.
        others: words that count without a second data set, those of a test set.
    """
    sets = [frozenset(filter(None, own)) for own in words]
    common, orders = Counter(sets), Counter(map(tuple, words))
    first = min(range(len(words)), key=lambda at: (-common[sets[at]], len(sets[at]), -orders[tuple(words[at])], at))
    holders = Counter(word for own in sets for word in own)
    tested = set(others)
    further: dict[str, None] = {}
    for own, names in zip(words, sets, strict=True):
        if names & sets[first]:
            further |= dict.fromkeys(w for w in own if w and w not in sets[first] and (holders[w] > 1 or w in tested))
    return (*words[first], *further)


def most_common(items: Sequence[str]) -> int:
    """The index of the most common item; of equally common ones the first."""
    counts = Counter(items)
    return min(range(len(items)), key=lambda at: (-counts[items[at]], at))
