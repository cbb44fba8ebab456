"""A worker's main loop: process one job after another until the daemon closes the connection."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedsim.errors import FedsimError, HostUnavailable
from fedsim.log import configure_logging, get_logger
from fedsim.messages import as_text
from fedsim.problems import problems_text
from fedsim.spool.host_errors import host_errors
from fedsim.worker.evaluation_jobs import TestHeldOut
from fedsim.worker.jobs import (
    Aggregate,
    AnswerPhase,
    Evaluate,
    Inspect,
    InspectHost,
    Job,
    JobFailed,
    Load,
    MakeInitialModel,
    MeasureSpeed,
    Reply,
    SaveCheckpoint,
    Train,
    WriteTestset,
    encode_reply,
    read_job,
)

if TYPE_CHECKING:
    from fedsim.worker.node_jobs import NodeJobs
    from fedsim.worker.server_jobs import ServerJobs


class Worker:
    """Does jobs; what a job needs is imported when the first of its sort comes (an aggregator never loads torch)."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._node: NodeJobs | None = None
        self._server: ServerJobs | None = None
        self._task = "no task"
        self._log = get_logger()

    def answer(self, line: bytes) -> Reply:
        """The reply to a job's line; one that cannot be read comes from a daemon with other code or packages."""
        try:
            job = read_job(line)
        except ValidationError as error:
            problem = problems_text(error, 1)
            reason = (
                f"fedsim or a package of models or formats was changed while it ran ({problem}): restart the daemon"
            )
            return JobFailed(job="unknown", reason=as_text(reason))
        return self.do(job)

    def do(self, job: Job) -> Reply:
        """The job's reply; what a person must know about a failure is in it."""
        reply = self._try(job)
        if isinstance(reply, JobFailed) and isinstance(job, Train):
            return reply.model_copy(update={"round": job.round, "chunk": job.chunk})
        return reply

    def _try(self, job: Job) -> Reply:
        try:
            with host_errors():
                return self._do(job)
        except HostUnavailable as error:
            reason, why = as_text(str(error)), error.suspend_reason
            return JobFailed(job=job.job, reason=reason, suspends=why, folder=error.folder)
        except FedsimError as error:
            return JobFailed(job=job.job, reason=as_text(str(error)))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return self._failed(job, f"{error.strerror or error}{where}")
        except Exception as error:  # noqa: BLE001 - whatever a lab's own model or format raises fails this job alone
            return self._failed(job, f"{type(error).__name__}: {error}")

    def _failed(self, job: Job, what: str) -> JobFailed:
        """Report an unexpected exception, and log its traceback."""
        reason = f"{self._about(job)}: {what}"
        self._log.exception("job_failed", job=job.job, problem=reason)
        return JobFailed(job=job.job, reason=as_text(reason))

    def _do(self, job: Job) -> Reply:
        match job:
            case Aggregate() | MakeInitialModel() | Evaluate() | SaveCheckpoint():
                return self._server_jobs().do(job)
            case Load(assignment=assignment):
                self._task = f"model {assignment.model_spec.name} on data set {assignment.settings.dataset}"
                return self._node_jobs().do(job)
            case WriteTestset() | Train() | AnswerPhase() | TestHeldOut():
                return self._node_jobs().do(job)
            case MeasureSpeed():
                from fedsim.worker import speed  # noqa: PLC0415

                return speed.measure_speed(job)
            case Inspect() | InspectHost():
                from fedsim.worker import host_jobs  # noqa: PLC0415

                return host_jobs.do(job)

    def _about(self, job: Job) -> str:
        """Describe a job for the user who submitted the task."""
        match job:
            case InspectHost():
                return f"the device {job.device}"
            case Inspect():
                return f"data set {job.dataset.name}"
            case AnswerPhase():
                return f"the phase {job.phase} of the {self._task}"
            case Load() | WriteTestset() | Train() | TestHeldOut():
                return self._task
            case MeasureSpeed():
                return f"model {job.request.model_spec.name}"
            case Aggregate():
                return f"strategy {job.settings.strategy}"
            case MakeInitialModel() | Evaluate() | SaveCheckpoint():
                return f"model {job.model_spec.name}"

    def _server_jobs(self) -> ServerJobs:
        if self._server is None:
            from fedsim.worker.server_jobs import ServerJobs  # noqa: PLC0415

            self._server = ServerJobs(self._threads)
        return self._server

    def _node_jobs(self) -> NodeJobs:
        if self._node is None:
            from fedsim.worker.node_jobs import NodeJobs  # noqa: PLC0415

            self._node = NodeJobs(self._threads)
        return self._node


def live(sock: socket.socket, threads: int, log: Mapping[str, Any]) -> None:
    """Serve jobs until the daemon closes its end.

    Args:
        sock: to the daemon.
        threads: to compute with.
        log: the name in the journal (`identifier`), and the fields of each event.
    """
    configure_logging(**log)
    worker = Worker(threads)
    # Neither is closed while this process runs: the daemon takes a closed connection for its end.
    lines, replies = sock.makefile("rb"), sock.makefile("wb")
    with suppress(BrokenPipeError, ConnectionResetError):  # the daemon has ended
        for line in lines:
            replies.write(encode_reply(worker.answer(line)))
            replies.flush()
