"""What an owner is told about a task before they decide: everything that is asked, and what would leave the node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedsim.data_schema import COMMON
from fedsim.errors import BadInput
from fedsim.learning.aggregate import uplink_layout
from fedsim.learning.samplers import make_sampler
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.messages import Assignment, ModelSpec, Uplink
from fedsim.settings import TaskSettings
from fedsim.web.forms import labelled_settings
from fedsim.web.i18n import Text


@dataclass(frozen=True)
class AskedTask:
    """A task that waits; numbers of bytes and parameters are None for a model whose size is not known beforehand.

    `sent` is how many numbers of the model are sent: what is frozen or personal is not, statistics are.
    """

    assignment: Assignment
    digest: str
    since: float
    parameters: int | None
    sent: int | None
    shown: list[tuple[Text, str]]

    @classmethod
    def of(cls, item: dict[str, Any]) -> AskedTask:
        """The task in an item of the node's answer."""
        assignment = Assignment.model_validate(item["assignment"])
        sizes = _sizes(assignment.model_spec.model_dump_json(), assignment.settings.model_dump_json())
        shown = labelled_settings(assignment.settings)
        return cls(assignment, str(item["digest"]), float(item["since"]), *sizes, shown)

    @property
    def passes(self) -> int:
        """Passes over the data, in training."""
        settings = self.assignment.settings
        return settings.num_rounds * settings.local_epochs if settings.trains else 0

    @property
    def updates(self) -> int:
        """The most updates that leave in one round: each client is in one of them."""
        settings = self.assignment.settings
        drawn = make_sampler(settings).num_drawn(settings.num_clients, settings.cohort_size)
        return min(drawn, self.assignment.num_clients)

    @property
    def update_bytes(self) -> int | None:
        """The size of one update's arrays, as the task's codecs encode them."""
        settings = self.assignment.settings
        if self.sent is None:
            return None
        try:
            strategy = make_strategy(settings)
            layout = make_pipeline(settings, strategy).layout(uplink_layout(strategy, self.sent))
        except BadInput:
            return None
        return layout.num_bytes

    @property
    def all_bytes(self) -> int | None:
        """The most that leaves in all rounds."""
        size = self.update_bytes
        return None if size is None else size * self.updates * self.assignment.settings.num_rounds

    @property
    def single(self) -> bool:
        """Whether an update is of one client."""
        return self.assignment.uplink is Uplink.EACH_CLIENT

    @property
    def sums(self) -> bool:
        """Whether sums over the columns leave as well, for a common scaling."""
        schema = self.assignment.data_schema
        return schema is not None and schema.scaling == COMMON


@lru_cache(maxsize=100)
def _sizes(spec: str, settings: str) -> tuple[int | None, int | None]:
    """The model's parameters, and the numbers of it that are sent."""
    from fedsim.learning.networks import count_parameters, task_roles  # noqa: PLC0415 - imports torch

    model, chosen = ModelSpec.model_validate_json(spec), TaskSettings.model_validate_json(settings)
    try:
        count = count_parameters(model)
        return count, None if count is None else task_roles(model, chosen, make_strategy(chosen)).flat_size
    except BadInput:
        return None, None
