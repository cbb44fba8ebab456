"""The job of a node's worker that tests a model on held-out examples, and its reply; see `worker.jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedsim.evaluation import EvaluationReport


class JobLine(BaseModel):
    """A field that the reader does not know is left out: daemon and worker may be neighbouring versions."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TestHeldOut(JobLine):
    """Test the parameters in `model`, of a round, on this node's held-out examples, for the report of `node`.

    Fewer than `min_examples` of them give no number. `scale` is the task's common scaling, if it has one, and `states`
    the task's folder with what its clients keep.
    """

    job: Literal["test_held_out"] = "test_held_out"
    round: int
    node: str
    model: Path
    digest: str | None = None
    scale: tuple[tuple[float, float], ...] = ()
    min_examples: int
    states: Path


class HeldOutTested(JobLine):
    """The model was tested; the report may withhold the numbers."""

    reply: Literal["held_out_tested"] = "held_out_tested"
    round: int
    report: EvaluationReport
    seconds: float
