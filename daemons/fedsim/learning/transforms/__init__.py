"""The pipeline between training and the wire: clip, add noise, quantise, mask.

    engine → client side of each transform, in order → file → wire → server side of each, in reverse order → aggregation

A transform is one class in one file. It declares what the server can see of an update after it, and what it cannot be
combined with; privacy levels, codecs and institutional rules are statements about these declarations. The pipeline is
empty unless the settings list transforms.

A codec is a transform whose `layout` is smaller than what it is given: other types, or fewer numbers. The aggregation
reads the server side's arrays block by block, so that a codec need not restore any update as a whole (`BlockArray`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import combinations
from types import MappingProxyType
from typing import Any, ClassVar

from fedsim.array_layout import Layout
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.column_statistics import DataStatisticsPhase
from fedsim.learning.common_scale import scaling_phases
from fedsim.learning.examples import FloatArray
from fedsim.learning.phases import Phase, Position, distinct_phases
from fedsim.learning.strategies import Strategy, Uplink, make_strategy
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings
from fedsim.update import Arrays, Update


class Visible(IntEnum):
    """What the server can see of an update, from all to nothing."""

    VALUES = 0
    NOISY_VALUES = 1
    ONLY_SUM = 2


class Stage(StrEnum):
    """Where the client side of a transform works: on each client's update, or on what is sent for a chunk."""

    CLIENT = "client"
    UPLOAD = "upload"


class Form(IntEnum):
    """What an update's arrays are, from what a strategy sends to what only its own codec understands."""

    DENSE = 0
    """The strategy's arrays, each float32 and as long as the model."""
    SPARSE = 1
    """Some of their elements, float32, and which ones these are."""
    ENCODED = 2
    """Numbers of another type, from which their codec restores float32."""


@dataclass(frozen=True)
class Sending:
    """What the client side of a transform knows besides the update.

    Attributes:
        received: the global model that the update started from, float32 [P]; is only read.
        seed: the task's.
        kept: what this sender kept after the newest round before this one in which it sent something, as declared by
            `kept_layout`; zeros if there is none. The sender is a client where an upload is one client's, else the
            node, once for each of its chunks of a round. Empty at the stage `CLIENT`.
    """

    received: FloatArray
    seed: int = 0
    kept: Arrays = field(default_factory=dict)


class Transform(Plugin):
    """The base of all transforms; as it is, it changes nothing.

    Attributes:
        stage: where the client side works. The server side sees uploads alone.
        visible: what the server can see of an upload after this transform.
        incompatible_with: names of transforms and strategies that it cannot be combined with.
        phases: that it adds to a task.
        accepts: the last form in which it can be given updates.
        gives: the form in which it returns them; None: that in which they came.
        needs_before: names of transforms that must come before it.
        uses_received: whether `on_server` needs the numbers of the model that an update started from, which the server
            no longer has where rounds are asynchronous.
    """

    stage: ClassVar[Stage] = Stage.UPLOAD
    visible: ClassVar[Visible] = Visible.VALUES
    incompatible_with: ClassVar[frozenset[str]] = frozenset()
    phases: tuple[Phase, ...] = ()
    accepts: ClassVar[Form] = Form.DENSE
    gives: ClassVar[Form | None] = None
    needs_before: ClassVar[frozenset[str]] = frozenset()
    uses_received: ClassVar[bool] = True

    def on_client(self, update: Update, sending: Sending) -> Update:  # noqa: ARG002
        """Transform an update on its node.

        What the sender is to keep for its next round is given to the update by `with_client_state`, with the arrays of
        `kept_layout`: it stays on the node, and counts once the update is written.
        """
        return update

    def on_server(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        """Reverse on the server what can be reversed, before the aggregation.

        Args:
            update: its arrays may be read-only, and an array may be a `BlockArray`.
            received: the global model that it started from, float32 [P]; is only read.

        Raises:
            BadInput: what arrived cannot be the client side's work.
        """
        return update

    def layout(self, layout: Layout) -> Layout:
        """The layout of an upload's file after the client side, from that before it."""
        return layout

    def kept_layout(self, layout: Layout) -> Layout:  # noqa: ARG002
        """The layout of what each sender keeps from round to round, from that of the upload before the client side."""
        return Layout({})

    def problem_with(self, strategy: Strategy) -> str:  # noqa: ARG002
        """Why it cannot be combined with a strategy, beyond what the declarations say; empty if it can."""
        return ""


class Pipeline:
    """Transforms in the order in which the client sides are applied."""

    def __init__(self, transforms: Sequence[Transform] = (), seed: int = 0) -> None:
        """`seed` is the task's."""
        self.transforms = tuple(transforms)
        self._seed = seed

    @property
    def visible(self) -> Visible:
        """What the server can see of an upload."""
        return max((transform.visible for transform in self.transforms), default=Visible.VALUES)

    def on_client(
        self, stage: Stage, update: Update, received: FloatArray, kept: Arrays = MappingProxyType({})
    ) -> Update:
        """Apply the client sides of a stage; what the sender keeps is the returned update's `client_state`."""
        sending = Sending(received, self._seed, kept)
        new: dict[str, Any] = {}
        for transform in self.transforms:
            if transform.stage == stage:
                update = transform.on_client(update, sending)
                new |= update.client_state
        return update.with_client_state(new)

    def on_server(self, update: Update, received: FloatArray) -> Update:
        """Apply the server sides, the last transform's first."""
        for transform in reversed(self.transforms):
            update = transform.on_server(update, received)
        return update

    def layout(self, layout: Layout) -> Layout:
        """The layout of an upload's file, from that of the strategy's arrays."""
        for transform in self.transforms:
            layout = transform.layout(layout)
        return layout

    def kept_layout(self, layout: Layout) -> Layout:
        """The layout of what each sender keeps from round to round, from that of the strategy's arrays."""
        shapes: dict[str, tuple[int, ...]] = {}
        for transform in self.transforms:
            if transform.stage == Stage.UPLOAD:
                shapes |= transform.kept_layout(layout).shapes
            layout = transform.layout(layout)
        return Layout(shapes)

    def keeps_state(self, strategy: Strategy) -> bool:
        """Whether senders keep something from round to round."""
        return bool(self.kept_layout(Layout(dict.fromkeys(strategy.uplink_arrays, (1,)))).shapes)


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
    if problem := order_problem(chosen):
        raise BadInput(problem)
    pipeline = Pipeline(list(chosen.values()), settings.seed)
    if settings.screening and pipeline.visible == Visible.ONLY_SUM:
        raise BadInput(
            f"the screening {settings.screening} compares updates, and with the transforms {', '.join(chosen)} the "
            "server sees only their sum: leave out one of them"
        )
    return pipeline


def order_problem(chosen: Mapping[str, Transform]) -> str:
    """Why transforms cannot work in the order in which they are given; empty if they can."""
    form, before = Form.DENSE, ""
    passed: list[str] = []
    for name, transform in sorted(chosen.items(), key=lambda item: item[1].stage != Stage.CLIENT):
        if transform.accepts < form:
            return f"{name} cannot work on what {before} has encoded: list {name} before {before}, or leave one out"
        if missing := sorted(transform.needs_before.difference(passed)):
            return f"{name} needs {' and '.join(missing)} before it in the list of transforms"
        if transform.gives is not None and transform.gives > form:
            form, before = transform.gives, name
        passed.append(name)
    return ""


def task_phases(settings: TaskSettings, schema: DataSchema | None) -> tuple[Phase, ...]:
    """The phases that the data set's scaling, the strategy and the transforms of a task add, in this order."""
    if not settings.trains:
        return (DataStatisticsPhase(),)
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
        (name, other): _declared((name, strategy), (other, transform))
        or _needs_values(strategy, transform)
        or _needs_rounds(strategy, transform)
        or transform.problem_with(strategy)
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


def _needs_rounds(strategy: Strategy, transform: Transform) -> str:
    """Why a transform does not work where the updates of several rounds are combined; empty if it does."""
    if strategy.buffering is None:
        return ""
    if transform.kept_layout(Layout(dict.fromkeys(strategy.uplink_arrays, (1,)))).shapes:
        return (
            "its senders keep something for their next round, and with asynchronous rounds an update may be discarded"
        )
    if any(phase.position is Position.WITHIN_ROUND for phase in transform.phases):
        return "it asks the nodes within each round, and asynchronous rounds have no cohort"
    if transform.uses_received:
        return "it needs the model that each update started from, which with asynchronous rounds is an older one"
    return ""
