"""What tasks with asynchronous rounds cannot be combined with."""

from __future__ import annotations

from fedsim.errors import BadInput
from fedsim.learning.attacks import Attack
from fedsim.learning.buffering import Buffering
from fedsim.learning.samplers import Sampler
from fedsim.learning.screenings import Screening
from fedsim.learning.strategies import Strategy
from fedsim.settings import TaskSettings


def buffering_of(strategy: Strategy, settings: TaskSettings) -> Buffering | None:
    """K, M and the maximum staleness of a task; None if its rounds are not asynchronous."""
    return None if strategy.buffering is None else strategy.buffering.of_cohort(settings.cohort_size)


def is_asynchronous(settings: TaskSettings) -> bool:
    """Whether the strategy that the settings name has asynchronous rounds."""
    strategy: Strategy = settings.plugin("strategy")
    return strategy.buffering is not None


def check_buffering(
    strategy: Strategy,
    settings: TaskSettings,
    sampler: Sampler,
    screening: Screening | None,
    attack: Attack | None,
) -> None:
    """Check that asynchronous rounds work with the rest of a task; raises `BadInput` with the reason if they do not."""
    buffering, name = buffering_of(strategy, settings), settings.strategy
    if buffering is None:
        return
    if not sampler.draws_singly:
        raise BadInput(
            f"the rounds of {name} are asynchronous and have no cohort, and the sampler {settings.sampler} draws "
            "cohorts: choose uniform"
        )
    if screening is not None:
        raise BadInput(
            f"the screening {settings.screening} compares the updates of one round's model, and {name} combines those "
            "of several: leave out one of them"
        )
    if attack is not None:
        raise BadInput(
            f"the attack {settings.attack} counts on attackers in each round's cohort, and the rounds of {name} are "
            "asynchronous and have none: choose another strategy"
        )
    if strategy.clients_keep_state(settings):
        raise BadInput(
            f"clients keep a state from round to round (statistics: {settings.statistics}), and with the asynchronous "
            f"rounds of {name} an update may be discarded: choose another strategy, or no such state"
        )
    if buffering.size > settings.num_clients:
        raise BadInput(
            f"{name} waits for {buffering.size} updates in each round, and there are {settings.num_clients} clients: "
            "lower buffer_size, or raise num_clients"
        )
