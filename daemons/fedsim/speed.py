"""What is asked of a node that measures how it trains quickest, before the plan of a task is fixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Self

from pydantic import Field

from fedsim.messages import Message, ModelSpec, Name, PluginInfo, Uid
from fedsim.settings import OptionValues, TaskSettings

MAX_EXAMPLES = 1024
USUAL_CHUNK_CLIENTS = 32
"""Most clients of a chunk where nothing is measured, or clients are trained one after another."""
TRAINING_PLUGINS = ("model", "objective", "optimizer", "strategy")
"""The settings that decide how long a step takes."""


def power_of_two(count: int) -> int:
    """The largest power of two that is not above `count`, which is at least 1."""
    return 1 << (count.bit_length() - 1)


class SpeedRequest(Message):
    """`measure`: what a task trains, as far as it matters for speed; numbers are rounded down to powers of two."""

    task: Uid
    model_spec: ModelSpec
    objective: Name
    objective_options: OptionValues = Field({}, description="Its options")
    optimizer: Name
    optimizer_options: OptionValues = Field({}, description="Its options")
    strategy: Name
    strategy_options: OptionValues = Field({}, description="Its options")
    code: Annotated[dict[Name, str], Field(max_length=len(TRAINING_PLUGINS))] = Field(
        {}, description="The digests of these plug-ins' sources"
    )
    batch_size: Annotated[int, Field(ge=1, le=MAX_EXAMPLES)]
    examples: Annotated[int, Field(ge=1, le=MAX_EXAMPLES, description="Of a client")]

    @classmethod
    def of(
        cls,
        task: str,
        settings: TaskSettings,
        model_spec: ModelSpec,
        plugins: Mapping[str, PluginInfo],
        examples: int,
    ) -> Self:
        """What a task with these settings trains on a node whose clients have about this many examples."""
        examples = power_of_two(max(1, min(examples, MAX_EXAMPLES)))
        return cls(
            task=task,
            model_spec=model_spec,
            objective=settings.objective,
            objective_options=settings.objective_options,
            optimizer=settings.optimizer,
            optimizer_options=settings.optimizer_options,
            strategy=settings.strategy,
            strategy_options=settings.strategy_options,
            code={name: plugins[name].digest for name in TRAINING_PLUGINS if name in plugins},
            batch_size=min(power_of_two(min(settings.local_batch_size, MAX_EXAMPLES)), examples),
            examples=examples,
        )

    @property
    def key(self) -> str:
        """Identifies this kind of training, whatever the task: 32 hexadecimal digits."""
        content = json.dumps(self.model_dump(mode="json", exclude={"task"}), sort_keys=True)
        return sha256(content.encode()).hexdigest()[:32]

    @property
    def settings(self) -> TaskSettings:
        """Settings that train so, for one epoch, or as many as the strategy needs."""
        once = TaskSettings(
            model=self.model_spec.name,
            model_options=self.model_spec.options,
            objective=self.objective,
            objective_options=self.objective_options,
            optimizer=self.optimizer,
            optimizer_options=self.optimizer_options,
            strategy=self.strategy,
            strategy_options=self.strategy_options,
            local_batch_size=self.batch_size,
            local_epochs=1,
            local_learning_rate=1e-3,
        )
        return once.model_copy(update={"local_epochs": once.plugin("strategy").least_epochs})
