"""A worker's life: `python -m fedsim.worker SOCKET PARENT THREADS`; do jobs until the daemon is gone."""

from __future__ import annotations

import signal
import socket
import sys
from typing import TYPE_CHECKING

from fedsim.errors import DiskFull, FedsimError
from fedsim.log import configure_logging
from fedsim.parent import end_with_parent
from fedsim.spool.room import noticing_a_full_disk
from fedsim.worker.jobs import (
    Aggregate,
    Evaluate,
    Inspect,
    Job,
    JobFailed,
    Load,
    MakeInitialModel,
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

    def do(self, job: Job) -> Reply:
        """The job's reply; what a person must know about a failure is in it."""
        try:
            with noticing_a_full_disk():
                return self._do(job)
        except DiskFull as error:
            return JobFailed(job=job.job, reason=str(error), disk_full=True)
        except FedsimError as error:
            return JobFailed(job=job.job, reason=str(error))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return JobFailed(job=job.job, reason=f"{job.job}: {error.strerror}{where}")

    def _do(self, job: Job) -> Reply:
        match job:
            case Aggregate() | MakeInitialModel() | Evaluate() | SaveCheckpoint():
                return self._server_jobs().do(job)
            case Load() | WriteTestset() | Train() | Inspect():
                return self._node_jobs().do(job)

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


def main() -> None:
    """Serve jobs until the daemon closes its end."""
    file_number, parent, threads = (int(word) for word in sys.argv[1:4])
    end_with_parent(parent, signal.SIGKILL)
    # A terminal's Ctrl-C is for the daemon, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    worker = Worker(threads)
    with socket.socket(fileno=file_number) as connection, connection.makefile("rb") as lines:
        for line in lines:
            connection.sendall(encode_reply(worker.do(read_job(line))))


if __name__ == "__main__":
    main()
