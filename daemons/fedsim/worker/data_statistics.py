"""What a node's worker answers in a task that only gathers statistics."""

from __future__ import annotations

from fedsim.data.guard import Division
from fedsim.data.unprepared import unprepared_columns
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.column_statistics import Column, feature_columns, node_statistics, target_columns
from fedsim.learning.examples import Examples
from fedsim.learning.phases import Content
from fedsim.worker.jobs import Load


def statistics_of(job: Load, train: Examples, division: Division | None) -> Content:
    """The statistics of the loaded training examples, as the institution's rule allows.

    Args:
        job: with which the data was loaded.
        train: the training examples, conformed to the task; of guarded data those in whole blocks.
        division: of guarded data.

    Raises:
        BadInput: the institution allows none, or the file has changed since the data was loaded.
    """
    assignment, rule = job.assignment, job.statistics
    if rule is None or rule.allowed == "none":
        raise BadInput("this institution lets no statistics of its data leave (institution.statistics)")
    schema = assignment.data_schema or DataSchema(kind="arrays")
    words = schema.words(assignment.model_spec.num_classes)
    columns: dict[str, Column] = {}
    if (table := unprepared_columns(job.dataset, job.folder)) is not None:
        names, values = table
        values = values if division is None else values[division.order]
        if len(values) != len(train):
            raise BadInput(f"the data set {job.dataset.name} has changed since it was loaded: submit the task again")
        columns = {name: Column(values[:, number]) for number, name in enumerate(names)}
    elif schema.kind != "text":  # the numbers of symbols have no mean
        columns = feature_columns(train)
    columns = {**columns, **target_columns(train, words)}
    return node_statistics(columns, train, words, rule).model_dump(mode="json")
