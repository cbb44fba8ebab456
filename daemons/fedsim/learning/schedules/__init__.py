"""Schedules: how the clients' learning rate changes from round to round. One class in one file each."""

from __future__ import annotations

from math import isfinite
from typing import ClassVar

from fedsim.errors import BadInput
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings


class Schedule(Plugin):
    """The base of all schedules.

    Attributes:
        depends_on_num_rounds: whether a round's rate depends on how many rounds the task has, so that a task of more
            rounds is another one from its first round on.
    """

    depends_on_num_rounds: ClassVar[bool] = False

    def factor(self, round_number: int, num_rounds: int) -> float:
        """What the task's `local_learning_rate` is multiplied with in a round.

        A pure function of its arguments.

        Args:
            round_number: counted from 1.
            num_rounds: of the task.

        Returns:
            A finite number above 0.
        """
        raise NotImplementedError


def make_schedule(settings: TaskSettings) -> Schedule:
    """The schedule that the settings name; raises `BadInput` if it cannot be made."""
    schedule: Schedule = settings.plugin("schedule")
    return schedule


def learning_rate(schedule: Schedule, settings: TaskSettings, round_number: int) -> float:
    """The clients' learning rate in a round; raises `BadInput` if the schedule gives none that can be used."""
    factor = schedule.factor(round_number, settings.num_rounds)
    rate = settings.local_learning_rate * factor
    if not (isfinite(rate) and rate > 0):
        raise BadInput(
            f"the schedule {settings.schedule} multiplies the learning rate by {factor} in round {round_number}; it "
            "must be a finite number above 0"
        )
    return rate


def largest_learning_rate(settings: TaskSettings) -> float:
    """The largest learning rate of all rounds of a task; raises `BadInput` as `make_schedule` and `learning_rate`."""
    schedule = make_schedule(settings)
    return max(learning_rate(schedule, settings, number) for number in range(1, settings.num_rounds + 1))
