"""The pipeline between training and the wire: clip, add noise, quantise, mask.

    engine → client side of each transform, in order → file → wire → server side of each, in reverse order → aggregation

A transform is one class in one file. It declares what the server can see of an update after it, and what it cannot be
combined with; privacy levels, codecs and institutional rules are statements about these declarations. The pipeline is
empty unless the settings list transforms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from itertools import combinations
from typing import ClassVar

from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.common_scale import scaling_phases
from fedsim.learning.examples import FloatArray
from fedsim.learning.phases import Phase, distinct_phases
from fedsim.learning.strategies import Strategy, Uplink, make_strategy
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings
from fedsim.update import Layout, Update


class Visible(IntEnum):
    """What the server can see of an update, from all to nothing."""

    VALUES = 0
    NOISY_VALUES = 1
    ONLY_SUM = 2


class Stage(StrEnum):
    """Where the client side of a transform works: on each client's update, or on what is sent for a chunk."""

    CLIENT = "client"
    UPLOAD = "upload"


class Transform(Plugin):
    """The base of all transforms; as it is, it changes nothing.

    Attributes:
        stage: where the client side works. The server side sees uploads alone.
        visible: what the server can see of an upload after this transform.
        incompatible_with: names of transforms and strategies that it cannot be combined with.
        phases: that it adds to a task.
    """

    stage: ClassVar[Stage] = Stage.UPLOAD
    visible: ClassVar[Visible] = Visible.VALUES
    incompatible_with: ClassVar[frozenset[str]] = frozenset()
    phases: tuple[Phase, ...] = ()

    def on_client(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        """Transform an update on its node; `received` is the global model that it started from, float32 [P]."""
        return update

    def on_server(self, update: Update) -> Update:
        """Reverse on the server what can be reversed, before the aggregation; the arrays may be read-only."""
        return update

    def layout(self, layout: Layout) -> Layout:
        """The layout of an upload's file after the client side, from that before it."""
        return layout


class Pipeline:
    """Transforms in the order in which the client sides are applied."""

    def __init__(self, transforms: Sequence[Transform] = ()) -> None:
        self.transforms = tuple(transforms)

    @property
    def visible(self) -> Visible:
        """What the server can see of an upload."""
        return max((transform.visible for transform in self.transforms), default=Visible.VALUES)

    def on_client(self, stage: Stage, update: Update, received: FloatArray) -> Update:
        """Apply the client sides of a stage."""
        for transform in self.transforms:
            if transform.stage == stage:
                update = transform.on_client(update, received)
        return update

    def on_server(self, update: Update) -> Update:
        """Apply the server sides, the last transform's first."""
        for transform in reversed(self.transforms):
            update = transform.on_server(update)
        return update

    def layout(self, layout: Layout) -> Layout:
        """The layout of an upload's file, from that of the strategy's arrays."""
        for transform in self.transforms:
            layout = transform.layout(layout)
        return layout


def make_pipeline(settings: TaskSettings, strategy: Strategy) -> Pipeline:
    """The pipeline of the transforms that the settings list, for the task's strategy.

    Raises:
        BadInput: a transform cannot be made, or two parts cannot be combined.
    """
    chosen: dict[str, Transform] = {name: settings.plugin(f"transforms.{name}") for name in settings.transforms}
    parts = (settings.strategy, settings.aggregation, settings.server_step)
    for (first, second), problem in compatibility({name: strategy for name in parts if name}, chosen).items():
        if problem:
            raise BadInput(f"{first} and {second} cannot be combined: {problem}")
    pipeline = Pipeline(list(chosen.values()))
    if settings.screening and pipeline.visible == Visible.ONLY_SUM:
        raise BadInput(
            f"the screening {settings.screening} compares updates, and with the transforms {', '.join(chosen)} the "
            "server sees only their sum: leave out one of them"
        )
    return pipeline


def task_phases(settings: TaskSettings, schema: DataSchema | None) -> tuple[Phase, ...]:
    """The phases that the data set's scaling, the strategy and the transforms of a task add, in this order."""
    strategy = make_strategy(settings)
    transforms = make_pipeline(settings, strategy).transforms
    asked = [phase for transform in transforms for phase in transform.phases]
    return distinct_phases((*scaling_phases(schema), *strategy.phases, *asked))


def compatibility(
    strategies: Mapping[str, Strategy], transforms: Mapping[str, Transform]
) -> dict[tuple[str, str], str]:
    """What combines with what, from the declarations alone.

    Returns:
        For each pair of a strategy and a transform, and of two transforms: why they cannot be combined, or "".
    """
    found = {
        (name, other): _declared((name, strategy), (other, transform)) or _needs_values(strategy, transform)
        for name, strategy in strategies.items()
        for other, transform in transforms.items()
    }
    pairs = combinations(transforms.items(), 2)
    return found | {(first[0], second[0]): _declared(first, second) for first, second in pairs}


def _declared(first: tuple[str, object], second: tuple[str, object]) -> str:
    for (name, part), (other, _) in ((first, second), (second, first)):
        if other in getattr(part, "incompatible_with", ()):
            return f"{name} declares that it does not work with {other}"
    return ""


def _needs_values(strategy: Strategy, transform: Transform) -> str:
    if strategy.uplink == Uplink.EACH_CLIENT and transform.visible == Visible.ONLY_SUM:
        return "the strategy needs each client's update, and the server would only see their sum"
    return ""
