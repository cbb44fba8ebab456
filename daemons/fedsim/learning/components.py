"""The plug-ins of one task, made from its settings or given as objects."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fedsim import plugins
from fedsim.learning.objectives import Objective, make_objective
from fedsim.learning.optimizers import Optimizer, make_optimizer
from fedsim.learning.partitions import Partitioner, make_partitioner
from fedsim.learning.samplers import Sampler, make_sampler
from fedsim.learning.strategies import Strategy, make_strategy
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from fedsim.learning.models import ModelFactory


@dataclass(frozen=True)
class Components:
    """What a task computes with. `model` is an installed model's name, or a factory; see `models.build_model`."""

    strategy: Strategy
    partitioner: Partitioner
    sampler: Sampler
    objective: Objective
    optimizer: Optimizer
    model: str | ModelFactory

    @classmethod
    def of(
        cls,
        settings: TaskSettings,
        *,
        strategy: Any = None,
        partition: Any = None,
        sampler: Any = None,
        objective: Any = None,
        optimizer: Any = None,
        model: Any = None,
    ) -> Self:
        """The components that the settings name; each can be given instead, as an object or as a plug-in's class.

        Raises:
            BadInput: a plug-in that the settings name cannot be made.
        """
        return cls(
            strategy=make_strategy(settings) if strategy is None else _made(strategy),
            partitioner=make_partitioner(settings) if partition is None else _made(partition),
            sampler=make_sampler(settings) if sampler is None else _made(sampler),
            objective=make_objective(settings) if objective is None else _made(objective),
            optimizer=make_optimizer(settings) if optimizer is None else _made(optimizer),
            model=settings.model if model is None else model,
        )


def _made(given: Any) -> Any:
    """A plug-in's class becomes an instance with default options; an object stays as it is."""
    return given() if inspect.isclass(given) and issubclass(given, plugins.Plugin) else given
