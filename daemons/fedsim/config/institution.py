"""The rules of an institution in client.yml: which tasks its node takes, and what they may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.fields import Bytes, Name, StrictModel, installed
from fedsim.plugins import (
    ATTACKS,
    MODELS,
    OBJECTIVES,
    OPTIMIZERS,
    PARTITIONS,
    SAMPLERS,
    SCHEDULES,
    SCREENINGS,
    STRATEGIES,
    TRANSFORMS,
    short_name,
)


class Institution(StrictModel):
    """What the owner of the data allows; a task beyond it is refused with the reason."""

    models: list[Annotated[Name, installed(MODELS)]] | None = Field(
        None, description="Models that may be trained here; null: every installed one"
    )
    strategies: list[Annotated[Name, installed(STRATEGIES)]] | None = Field(
        None, description="Strategies, also those of `aggregation` and `server_step`; null: every installed one"
    )
    partitions: list[Annotated[Name, installed(PARTITIONS)]] | None = Field(
        None, description="Partitions of the data among clients; null: every installed one"
    )
    objectives: list[Annotated[Name, installed(OBJECTIVES)]] | None = Field(
        None, description="Objectives that may be minimised here; null: every installed one"
    )
    optimizers: list[Annotated[Name, installed(OPTIMIZERS)]] | None = Field(
        None, description="Optimizers of the clients; null: every installed one"
    )
    schedules: list[Annotated[Name, installed(SCHEDULES)]] | None = Field(
        None, description="Schedules of the learning rate; null: every installed one"
    )
    samplers: list[Annotated[Name, installed(SAMPLERS)]] | None = Field(
        None, description="Samplers of each round's cohort; null: every installed one"
    )
    transforms: list[Annotated[Name, installed(TRANSFORMS)]] | None = Field(
        None, description="Transforms of updates; null: every installed one"
    )
    screenings: list[Annotated[Name, installed(SCREENINGS)]] | None = Field(
        None, description="Screenings, whose figures the task's page shows; null: every installed one, []: none"
    )
    attacks: list[Annotated[Name, installed(ATTACKS)]] | None = Field(
        [], description="Attacks that a task may study on this node's open data; []: none, null: every installed one"
    )
    min_examples: int = Field(1, ge=1, description="Minimum number of examples behind an update that leaves the node")
    min_test_examples: int = Field(
        10,
        ge=1,
        description="Minimum number of examples behind metrics that leave the node: held-out ones, or a client's",
    )
    min_count: int = Field(
        10,
        ge=1,
        description="Minimum number of examples behind a count of a label that leaves the node (`show_labels`)",
    )
    min_difference: int = Field(
        20,
        ge=2,
        le=1_000_000,
        description="Least size of the blocks of a guarded data set: two queries differ by at least this many examples",
    )
    min_clients: int = Field(
        1, ge=1, le=1_000_000, description="Least number of clients behind an update; with `local` a node has one"
    )
    client_figures: bool = Field(
        False,
        description="Whether loss and update norm of single clients leave, of those with `min_test_examples`; the "
        "node's own always do",
    )
    statistics: Literal["none", "sums", "extremes"] = Field(
        "none",
        description="What tasks of the kind `statistics` get: counts, sums and histograms of columns and labels, of at "
        "least `min_count` examples each; with extremes, of open data also the least and the greatest value",
    )
    individual_updates: bool = Field(
        False, description="Whether rules that need each client's update, such as median, are exempt from min_clients"
    )
    max_tasks: int | None = Field(None, ge=1, description="Tasks in a year on each guarded data set; null: no limit")
    allowed_users: list[str] | None = Field(
        None, description="Users, as the server names them, whose tasks are accepted; null: all"
    )
    require_purpose: bool = Field(False, description="Whether a task must say what it is for (`purpose`)")
    require_approval: bool = Field(
        False,
        description="Whether the owner approves each task (see `owner_socket`); also a key of each data set",
    )
    max_tasks_per_day: int | None = Field(None, ge=1, description="Tasks in 24 hours on each data set; null: no limit")
    max_tasks_per_user_per_day: int | None = Field(
        None, ge=1, description="The same for each user, over all data sets; null: no limit"
    )
    max_passes: int | None = Field(
        None, ge=1, description="Passes over the data in one task, `num_rounds` x `local_epochs`; null: no limit"
    )
    max_learning_rate: float | None = Field(
        1.0,
        gt=0,
        description="Largest learning rate of a round on a guarded data set, `local_learning_rate` times its "
        "`schedule`: after long steps models depend on few examples; null: no limit",
    )
    max_parameters: int | None = Field(
        None, ge=1, description="Largest number of a model's parameters, counted before it is made; null: no limit"
    )
    max_memory_bytes: Bytes | None = Field(
        None, description="Most memory for the models of all workers, estimated before they are made; null: no limit"
    )
    min_privacy_level: Literal["none", "secure_aggregation", "differential_privacy"] = Field(
        "none", description="Tasks below it are refused; this version supports only none"
    )

    @property
    def least_shown(self) -> int | None:
        """The least number of examples of a client whose own figures may leave; None: none may."""
        return self.min_test_examples if self.client_figures else None

    def allows(self, group: str) -> list[str] | None:
        """The allowed plug-ins of a group that tasks choose from; None: every installed one."""
        allowed: list[str] | None = getattr(self, short_name(group))
        return allowed
