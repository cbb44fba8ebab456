"""The retention rule of `server.yml`: how long the server keeps what finished tasks leave."""

from __future__ import annotations

from pydantic import Field

from fedsim.config.fields import Seconds, StrictModel


class Retention(StrictModel):
    """Which old checkpoints and states of tasks are removed; each removal is logged and recorded with the task."""

    keep_days: Seconds | None = Field(None, le=36_500, description="Remove checkpoints of tasks older than this")
    keep_tasks: int | None = Field(None, ge=1, description="Keep the checkpoints of this many tasks")
    resume_days: Seconds | None = Field(
        30, le=36_500, description="How long a task can be resumed or continued; its state is removed then"
    )
    continue_tasks: int = Field(
        20, ge=0, description="Keep the states of this many completed tasks, so that they can be continued"
    )
