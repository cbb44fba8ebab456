"""The kinds of tasks: training, and statistics of the data without any training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic import BaseModel

STATISTICS_SETTINGS: Final = ("kind", "title", "purpose", "dataset", "num_nodes", "nodes")
"""The settings of a task of the kind `statistics`."""
STATISTICS_DEFAULTS: Final[dict[str, Any]] = {"kind": "statistics", "partition": "local"}
"""What its other settings are, besides their defaults: each node's own data is one client."""


def not_for_statistics(given: BaseModel, plain: BaseModel) -> dict[str, str]:
    """The settings of a statistics task that say how a model would be trained, with the problem.

    `plain` are the settings of a statistics task without any of its own.
    """
    return {
        name: "does not apply to a task of the kind statistics: leave it out"
        for name in type(given).model_fields
        if name not in STATISTICS_SETTINGS and not name.endswith("_options")
        if getattr(given, name) != getattr(plain, name)
    }
