"""The node daemon: processes received files, ended transfers, workers' replies and signals; announces the node."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal

from fedsim.client.announcing import host_name, make_hello
from fedsim.client.approvals import PendingApprovals
from fedsim.client.audit_log import AuditLog
from fedsim.client.context import NodeContext
from fedsim.client.guards import earlier_tasks, guard_orders, query_digest
from fedsim.client.inbox_config import inbox_config
from fedsim.client.owner_desk import OwnerDesk
from fedsim.client.speed_meter import SpeedMeter
from fedsim.client.task import NodeTask
from fedsim.config import ClientConfig
from fedsim.errors import BadInput, Unavailable
from fedsim.inbox.counters import Counters
from fedsim.inbox.spool_inbox import SpoolInbox
from fedsim.messages import Assignment, AuditHead, Stop, read_message
from fedsim.metrics import NodeMetrics
from fedsim.runtime.task_daemon import TaskDaemon
from fedsim.spool.clear import clear_file, clear_other_tasks, clear_task
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.instance import next_instance
from fedsim.spool.layout import Arrived, read_present
from fedsim.state_machines.policy import refusal
from fedsim.wire.peer import Peer
from fedsim.wire.sender import Outcome, Status
from fedsim.worker.inspector import Inspected
from fedsim.worker.jobs import GuardOrder

SWEEP_SECONDS = 600.0


class ClientDaemon(TaskDaemon[ClientConfig]):
    """Train this node's clients on its own data; client.yml defines what may be trained and what may leave the node."""

    name = "client"
    role = Role.CLIENT
    config_model = ClientConfig
    metrics_model = NodeMetrics
    metrics: NodeMetrics
    fixed_keys = (
        "name",
        "server",
        "server_name",
        "listens",
        "spool",
        "data",
        "insecure_plaintext",
        "metrics",
        "owner_socket",
    )
    received_kinds = (Kind.INITPARAM, Kind.GLOBALPARAM, Kind.MEASURE, Kind.REQUEST, Kind.EVALUATE, Kind.STOP)
    serves_while_suspended = True

    def setup(self) -> None:
        """Open the spool, start the sender, inspect the data sets."""
        super().setup()
        config = self.config
        config.data.mkdir(parents=True, exist_ok=True)
        self._server = Peer(config.server_name, config.server.address, config.server.port)
        self._context = NodeContext(
            config=config,
            spool=self.spool,
            outbox=self.outbox,
            writer=self.writer,
            server=self._server,
            fork_servers=self.fork_servers,
            audit_log=AuditLog(config.spool / "audit.jsonl").open(),
            announce=self._announce_soon,
            metrics=self.metrics,
            earlier=earlier_tasks(self.spool, config.spool / "audit.jsonl"),
        )
        self._tasks: dict[str, NodeTask] = {}
        self._approvals = PendingApprovals(self._context.audit_log)
        self._owner = OwnerDesk(self._context, self._approvals, self._scan)
        self._owner.open(self.loop)
        self.resources.callback(self._owner.close)
        self._meter = SpeedMeter(self._context, self.loop)
        self.resources.callback(self._meter.close)
        self._resuming = False
        self.resources.callback(self._quit_tasks)
        self._inspected: Inspected | None = None
        self._hello_problem = ""
        self._instance = next_instance(config.spool)
        self._orphans: set[str] = set()
        self._announce_timer = self.loop.timer(self._announce)
        self._sweep_timer = self.loop.timer(self._sweep)
        self._sweep_timer.start(SWEEP_SECONDS)
        keep = {item.id.task or "" for item in self.spool.arrived(Kind.INITPARAM)}
        # Another `initparam` may arrive at this moment; before one comes a question about the speed.
        for uid in sorted(clear_other_tasks(self.spool, keep, set(Kind) - {Kind.INITPARAM, Kind.MEASURE})):
            self.log.info("leftovers_swept", uid=uid)
        self.inspect_data()

    @property
    def guards(self) -> dict[str, GuardOrder]:
        """The guarded data sets of client.yml."""
        return guard_orders(self.config)

    def reload(self, config: ClientConfig) -> None:
        """Capacity, certificates, data sets, rules, workers and times change at once; the rest with a restart."""
        super().reload(config)
        self._context.config = config
        if self._inbox is not None:
            self._inbox.config = inbox_config(self.config)
        if self._inspected is not None:
            self._start_assigned()  # rules may have changed

    def inbox(self) -> SpoolInbox | None:
        """A node that listens on no port receives over the connection that this daemon opens."""
        self._inbox: SpoolInbox | None = None
        if not self.config.listens:
            self._inbox = SpoolInbox(inbox_config(self.config), self.spool, Counters())
            self.resources.callback(self._inbox.close)
            self._inbox.open()
        return self._inbox

    def peers(self) -> set[Peer]:
        """The server's receiver."""
        return {self._server}

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """The device that client.yml names."""
        return self.config.device

    @classmethod
    def log_fields(cls, config: ClientConfig) -> dict[str, Any]:
        """The node's name, which distinguishes entries in merged journals of several hosts."""
        return {"node": config.name}

    def end_turn(self) -> None:
        """Drop tasks that have ended, and publish numbers and status."""
        ended = [uid for uid, task in self._tasks.items() if task.ended]
        for uid in ended:
            del self._tasks[uid]
            self._context.restarts.forget(uid)
        if ended and self._inspected is not None:
            self._start_assigned()  # a run that continues one of these may have waited for its end
        if not self._resuming and any(task.interrupted for task in self._tasks.values()):
            self._resuming = True  # after what is still written of them
            self.writer.submit(lambda: None, self._resume_interrupted)
        self.metrics.tasks.labels("running").set(len(self._tasks))
        self.metrics.full.labels("disk_space").set(self.suspended is not None)
        running = "; ".join(task.status for task in self._tasks.values())
        if waiting := self._approvals.waiting:
            running = "; ".join(filter(None, (running, f"{len(waiting)} tasks wait for the owner's approval")))
        idle = "waiting for a task" if self._inspected is not None else "inspecting the data sets"
        self.publish_status(str(self.suspended or "") or running or idle)

    # ------------------------------------------------------------ suspending and resuming

    def suspend_tasks(self, error: Unavailable) -> None:
        """Suspend the tasks, and report the reason to the server.

        They stay in the announcements: a node that no longer announces a task has ended it, and gets no final model.
        """
        for task in self._tasks.values():
            task.suspend(error)
        self._announce_soon()

    def resume_tasks(self) -> None:
        """Resume the suspended tasks; one whose files were cleared in the meantime has ended."""
        assigned = {item.id.task for item in self.spool.arrived(Kind.INITPARAM)}
        self._tasks = {uid: task for uid, task in self._tasks.items() if uid in assigned}
        self._scan()
        self._announce_soon()

    def _resume_interrupted(self, _: Future[None]) -> None:
        self._resuming = False
        if self.suspended is None:
            self.resume_tasks()

    def _quit_tasks(self) -> None:
        for task in self._tasks.values():
            task.quit()

    # ------------------------------------------------------------ announcements

    def data_inspected(self, inspected: Inspected) -> None:
        """Start tasks when the data sets are known, and announce them to the server."""
        first = self._inspected is None
        self._inspected = inspected
        self.metrics.problems.set(len(inspected.problems))
        if first:
            self._scan()
        self._meter.start(inspected)
        self._announce_soon()
        self.warm_soon()

    @property
    def busy(self) -> bool:
        """See TaskDaemon."""
        return bool(self._tasks)

    def _announce_soon(self) -> None:
        if self._inspected is not None:
            self._announce_timer.start()

    def _announce(self) -> None:
        if self._inspected is None:
            return
        self._announce_timer.start(self.config.announce_seconds)
        for task in self._tasks.values():
            task.offer_again()
        remarks = (*([str(self.suspended)] if self.suspended else []), *self.own_data.remarks)
        reports = [*(task.report for task in self._tasks.values()), *self._approvals.reports]
        hello = make_hello(self.config, self._inspected, reports, remarks, self._meter.speeds)
        head = self._context.audit_log.head
        known = self._instance
        own = {
            "instance": known.id,
            "start": known.start,
            "session": known.session,
            "host": host_name(self._server),
            "certificate_expires_at": self.certificate_expires_at,
            "audit": AuditHead(lines=head.lines, digest=head.digest),
        }
        hello = hello.model_copy(update=own)
        self.outbox.send_newest(self._server, FileId(kind=Kind.HELLO), hello.model_dump_json().encode())

    def _hello_ended(self, outcome: Outcome) -> None:
        """Log a refusal once, not at every announcement, and its end."""
        problem = outcome.code if outcome.status is Status.REFUSED else ""
        if problem == self._hello_problem:
            return
        self._hello_problem = problem
        if problem:
            self.log.error("hello_refused", server=str(outcome.peer), problem=outcome.message)
        else:
            self.log.info("hello_accepted", server=str(outcome.peer))

    # ------------------------------------------------------------ events

    def files_arrived(self, items: list[Arrived]) -> None:
        """Start assigned tasks, pass global models to theirs, process stops."""
        if self._inspected is not None:  # before, nothing runs, and then everything is scanned
            of_tasks = {Kind.GLOBALPARAM, Kind.REQUEST, Kind.EVALUATE}
            self._scan({item.id.task or "" for item in items if item.id.kind in of_tasks})
            self._meter.scan()

    def transfer_ended(self, outcome: Outcome) -> None:
        """Pass the end of a transfer to its task."""
        if outcome.file_id.kind is Kind.HELLO:
            self._hello_ended(outcome)
        task = self._tasks.get(outcome.file_id.task or "")
        if task is not None:
            task.transfer_ended(outcome)

    def _scan(self, uids: Collection[str] = ()) -> None:
        """Read what was received: tasks, global models and questions of the tasks `uids`, and stops.

        Stops come last: a final model that came before its task's stop is kept.
        """
        self._start_assigned()
        for uid in uids:
            if uid in self._tasks:
                self._tasks[uid].scan_received()
        self._process_stops()

    def _start_assigned(self) -> None:
        if self.suspended is not None:
            return
        started = []
        for item in self.spool.arrived(Kind.INITPARAM):
            uid = item.id.task or ""
            known = self._tasks.get(uid)
            if known is not None and (known.abandoned or (known.suspended is None and not known.interrupted)):
                continue
            try:
                assignment = read_message(Assignment, item.path.read_bytes(), "the server's initparam")
            except FileNotFoundError:  # the writer has cleared it with its task
                continue
            except BadInput as error:
                self.log.warning("initparam_not_understood", problem=str(error))
                clear_file(item.path)
                continue
            if assignment.resumes in self._tasks:
                continue  # that run is about to end here: this one needs what its clients keep
            refused = self._refusal(assignment)
            if refused is None and self._approvals.must_wait(assignment, self.config):
                self._tasks.pop(uid, None)
                continue
            self._approvals.drop(uid)
            task = self._tasks[uid] = NodeTask(assignment, self._context)
            started.append((task, refused))
        self._owner.publish()
        for task, refused in started:  # all are known by now, should starting one find the disk full again
            task.start(refused)

    def _refusal(self, assignment: Assignment) -> str | None:
        """Why the rules in client.yml, or its owner, forbid a task here."""
        accepted = self._context.audit_log.accepted.values()
        processors, earlier = os.cpu_count() or 1, query_digest(assignment) in self._context.earlier
        rules = refusal(assignment, self.config, accepted, time.time(), processors=processors, earlier=earlier)
        return rules or self._approvals.refusal(assignment)

    def _process_stops(self) -> None:
        for item, content in read_present(self.spool.arrived(Kind.STOP)):
            uid = item.id.task or ""
            try:
                reason = read_message(Stop, content, "the server's stop").reason
            except BadInput as error:
                reason = str(error)
            clear_file(item.path)
            task = self._tasks.get(uid)
            if task is not None and not task.abandoned:
                task.stop(reason)
            else:
                self._tasks.pop(uid, None)
                self._approvals.drop(uid)
                self._owner.publish()
                self.writer.submit(task.clear if task else partial(clear_task, self.spool, uid))  # after other writes

    def _sweep(self) -> None:
        """Clear files of tasks that are over here: at the second scan, as an `initparam` may still follow."""
        self._sweep_timer.start(SWEEP_SECONDS)
        if self._inbox is not None:
            self._inbox.sweep()
        found = {item.id.task or "" for item in self.spool.arrived(Kind.GLOBALPARAM)}
        orphans = found - {item.id.task or "" for item in self.spool.arrived(Kind.INITPARAM)}
        for uid in sorted(orphans & self._orphans):
            clear_task(self.spool, uid)
            self.log.info("leftovers_swept", uid=uid)
        self._orphans = orphans
