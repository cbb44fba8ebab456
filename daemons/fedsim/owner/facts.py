"""What an owner is told about a task before they decide: everything that is asked, and what would leave the node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedsim.data_schema import COMMON
from fedsim.errors import BadInput
from fedsim.messages import Assignment, ModelSpec, Uplink
from fedsim.web.forms import labelled_settings
from fedsim.web.i18n import Text

PARAMETER_BYTES = 4


@dataclass(frozen=True)
class AskedTask:
    """A task that waits; numbers of bytes and parameters are None for a model whose size is not known beforehand."""

    assignment: Assignment
    digest: str
    since: float
    parameters: int | None
    shown: list[tuple[Text, str]]

    @classmethod
    def of(cls, item: dict[str, Any]) -> AskedTask:
        """The task in an item of the node's answer."""
        assignment = Assignment.model_validate(item["assignment"])
        parameters = _parameters(assignment.model_spec.model_dump_json())
        shown = labelled_settings(assignment.settings)
        return cls(assignment, str(item["digest"]), float(item["since"]), parameters, shown)

    @property
    def passes(self) -> int:
        """Passes over the data."""
        return self.assignment.settings.num_rounds * self.assignment.settings.local_epochs

    @property
    def updates(self) -> int:
        """The most updates that leave in one round: each client is in one of them."""
        return min(self.assignment.settings.cohort_size, self.assignment.num_clients)

    @property
    def update_bytes(self) -> int | None:
        """The size of one update's parameters."""
        return None if self.parameters is None else self.parameters * PARAMETER_BYTES

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
def _parameters(spec: str) -> int | None:
    from fedsim.learning.networks import count_parameters  # noqa: PLC0415 - imports torch

    try:
        return count_parameters(ModelSpec.model_validate_json(spec))
    except BadInput:
        return None
