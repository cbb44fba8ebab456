"""The plug-ins of one task, made from its settings or given as objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fedsim import plugins
from fedsim.learning.attacks import Attack, check_attack, make_attack
from fedsim.learning.buffering_checks import check_buffering
from fedsim.learning.models import Model
from fedsim.learning.objectives import Objective, make_objective
from fedsim.learning.optimizers import Optimizer, make_optimizer
from fedsim.learning.partitions import Partitioner, make_partitioner
from fedsim.learning.samplers import Sampler, make_sampler
from fedsim.learning.schedules import Schedule, make_schedule
from fedsim.learning.screenings import Screening, make_screening
from fedsim.learning.strategies import Strategy, make_strategy
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Components:
    """What a task computes with; `model_name` is what messages call the model."""

    strategy: Strategy
    partitioner: Partitioner
    sampler: Sampler
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    screening: Screening | None
    attack: Attack | None
    model: Model
    model_name: str

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
        schedule: Any = None,
        screening: Any = None,
        attack: Any = None,
        model: Any = None,
    ) -> Self:
        """The components that the settings name; each can be given instead, as an object or as a plug-in's class.

        A model can also be an installed one's name, or a function `(feature_shape, num_classes) -> torch.nn.Module`.

        Raises:
            BadInput: a plug-in that the settings name cannot be made, or the attack does not work with the others.
        """
        made = cls(
            strategy=make_strategy(settings) if strategy is None else _made(strategy),
            partitioner=make_partitioner(settings) if partition is None else _made(partition),
            sampler=make_sampler(settings) if sampler is None else _made(sampler),
            objective=make_objective(settings) if objective is None else _made(objective),
            optimizer=make_optimizer(settings) if optimizer is None else _made(optimizer),
            schedule=make_schedule(settings) if schedule is None else _made(schedule),
            screening=make_screening(settings) if screening is None else _made(screening),
            attack=make_attack(settings) if attack is None else _made(attack),
            model=_model(settings, model),
            model_name=_name(settings.model if model is None else model),
        )
        check_attack(made.attack, settings, made.strategy, made.partitioner)
        check_buffering(made.strategy, settings, made.sampler, made.screening, made.attack)
        return made

    def model_spec(self, settings: TaskSettings, feature_shape: tuple[int, ...], num_classes: int) -> ModelSpec:
        """The task's model for examples of this shape."""
        return ModelSpec.of(settings, feature_shape, num_classes).model_copy(update={"name": self.model_name})


def _made(given: Any) -> Any:
    """A plug-in's class becomes an instance with default options; an object stays as it is."""
    return given() if inspect.isclass(given) and issubclass(given, plugins.Plugin) else given


@dataclass
class _FunctionModel(Model):
    """A model that is given as a function."""

    function: Callable[[tuple[int, ...], int], nn.Module]

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return self.function(feature_shape, num_classes)


def _model(settings: TaskSettings, given: Any) -> Model:
    if given is None or isinstance(given, str):
        name = given or settings.model
        model: Model = plugins.make(plugins.MODELS, name, settings.model_options if name == settings.model else {})
        return model
    made = _made(given)
    return made if isinstance(made, Model) else _FunctionModel(made)


def _name(model: Any) -> str:
    return model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
