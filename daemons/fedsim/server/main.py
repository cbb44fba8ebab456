"""The server daemon: processes received files, ended transfers, workers' replies, signals and time."""

from __future__ import annotations

import time
from functools import partial
from math import inf
from pathlib import Path

from fedsim.config import ServerConfig
from fedsim.errors import SuspendReason, Unavailable
from fedsim.metrics import ServerMetrics
from fedsim.runtime.bulkhead import bulkhead
from fedsim.runtime.daemon import daemon_main
from fedsim.runtime.task_daemon import TaskDaemon
from fedsim.server.broadcasts import Broadcasts
from fedsim.server.context import ServerContext
from fedsim.server.deliveries import FinalDeliveries, StopDeliveries
from fedsim.server.housekeeping import (
    apply_retention,
    delete_tasks,
    limit_states,
    remove_old_states,
    sweep_kept_states,
    sweep_leftovers,
)
from fedsim.server.initial_files import InitialFiles
from fedsim.server.kept_states import KeptStates
from fedsim.server.known_data import KnownData
from fedsim.server.nodes import Nodes
from fedsim.server.steady_clock import SteadyClock
from fedsim.server.tasks import ClaimedTasks
from fedsim.spool.clear import clear_file, clear_task
from fedsim.spool.files import Kind, Role
from fedsim.spool.layout import Arrived
from fedsim.state_machines.policy import missed_the_end
from fedsim.store import open_store
from fedsim.store.availability import DatabaseCheck
from fedsim.store.records import Node
from fedsim.wire.peer import Peer
from fedsim.wire.sender import Outcome
from fedsim.worker.inspector import Inspected

HOUSEKEEPING_SECONDS = 3600.0
MAX_UNKNOWN_TASKS = 10
"""Maximum number of stops that are under way to a node because of tasks that are not in the database."""


REPORTS = (Kind.ANSWER, Kind.METRICS)


class ServerDaemon(TaskDaemon[ServerConfig]):
    """Coordinate the tasks: choose nodes, send global models, collect updates, aggregate, evaluate, save."""

    name = "server"
    role = Role.SERVER
    config_model = ServerConfig
    metrics_model = ServerMetrics
    metrics: ServerMetrics
    fixed_keys = ("name", "spool", "database", "database_password_file", "insecure_plaintext", "metrics")
    received_kinds = (Kind.HELLO, Kind.INITPARAM, Kind.STOP, Kind.LOCALPARAM, Kind.TESTSET, *REPORTS)
    serves_while_suspended = False

    def setup(self) -> None:
        """Open the spool, start the sender; wait for the database."""
        config = self.config
        self._store = open_store(config.database, config.database_password_file)
        self.resources.callback(self._store.close)
        self._database = DatabaseCheck(self._store, migrate=True)
        super().setup()
        self._nodes = Nodes(config, self.spool)
        self._stops = StopDeliveries(config.spool / "nodes.json", self.outbox, self.writer, self._nodes)
        self._stops.open()
        self._finals = FinalDeliveries(config.spool / "final", self.outbox, self.writer, self._nodes, self._stops)
        self._broadcasts = Broadcasts(self.outbox, self._nodes, self.loop, lambda: self.config.forwarding)
        self._context = ServerContext(
            config=config,
            store=self._store,
            spool=self.spool,
            outbox=self.outbox,
            writer=self.writer,
            nodes=self._nodes,
            broadcasts=self._broadcasts,
            known_data=KnownData(self._store),
            finals=self._finals,
            stops=self._stops,
            kept=KeptStates(config.spool),
            initial_files=InitialFiles(config.spool, self.spool.checkpoints),
            fork_servers=self.fork_servers,
            metrics=self.metrics,
        )
        self._tasks = ClaimedTasks(self._context)
        self._clock = SteadyClock(config.spool / "clock.json", self.writer)
        self.resources.callback(self._tasks.quit)
        self._poll = self.loop.timer(self._poll_database)
        self._housekeeping = self.loop.timer(self._keep_house)
        self._housekeeping.start()
        self.inspect_data()
        self.await_resources()

    def reload(self, config: ServerConfig) -> None:
        """Nodes, certificates, time limits, data sets, workers, retention change at once; the rest with a restart."""
        super().reload(config)
        self._context.config = config
        self._stops.reload()
        self._poll.start()
        self._housekeeping.start()

    def peers(self) -> set[Peer]:
        """The nodes' receivers."""
        for old, new in self._nodes.reload(self.config):
            self.outbox.redirect(old, new)
        return set(self._nodes.addresses.values())

    def next_wake(self) -> float:
        """When a task needs the next turn."""
        return min(super().next_wake(), *self._tasks.wakes(), inf)

    # ------------------------------------------------------------ suspending and resuming

    def suspend_tasks(self, error: Unavailable) -> None:
        """Record why disk or database are unavailable, if possible, and end the workers of tasks."""
        reason = error.suspend_reason
        self.metrics.waiting.labels("disk_space").set(reason is SuspendReason.DISK_FULL)
        self._tasks.suspend(error)

    def require_resources(self) -> None:
        """Require free disk space, and a database with the code's schema."""
        super().require_resources()
        self.metrics.waiting.labels("disk_space").set(0)
        self.metrics.waiting.labels("database").set(1)
        self._database.require()
        self.metrics.waiting.labels("database").set(0)

    def resume_tasks(self) -> None:
        """Continue the tasks that were claimed or running."""
        sweep_leftovers(self.spool, self._store)
        sweep_kept_states(self._context.kept, self._store)
        self._tasks.resume()
        self._stops.resume()
        self._finals.resume(self._is_finished)
        self._read_hellos()  # last: what nodes report is compared with the tasks that exist
        self._poll.start()

    def _is_finished(self, uid: str) -> bool | None:
        task = self._store.tasks.by_uid(uid)
        return None if task is None else task.state.finished

    # ------------------------------------------------------------ events

    def data_inspected(self, inspected: Inspected) -> None:
        """Start planning when the server's own data sets are known."""
        self._tasks.own = inspected
        self._poll.start()
        self.warm_soon()

    @property
    def busy(self) -> bool:
        """See TaskDaemon."""
        return bool(self._tasks.running)

    def files_arrived(self, items: list[Arrived]) -> None:
        """Pass files to the tasks that they belong to."""
        kinds = {item.id.kind for item in items}
        if Kind.HELLO in kinds:
            self._read_hellos([item.path for item in items if item.id.kind is Kind.HELLO])
            self._tasks.start_waiting()
        late = set()
        for item in items:
            uid = item.id.task or ""
            if item.id.kind not in {Kind.TESTSET, Kind.LOCALPARAM, *REPORTS}:
                continue
            if uid in self._tasks.running:
                self._tasks.running[uid].file_arrived(item)
            elif uid not in self._tasks:
                late.add(uid)
        for uid in late:  # for a task that is over
            clear_task(self.spool, uid, (Kind.LOCALPARAM, Kind.TESTSET, *REPORTS))
        if kinds & {Kind.INITPARAM, Kind.STOP}:
            self._poll.start()

    def transfer_ended(self, outcome: Outcome) -> None:
        """Pass the end of a transfer to the task or the delivery that it belongs to."""
        self._broadcasts.transfer_ended(outcome)
        task = self._tasks.running.get(outcome.file_id.task or "")
        if outcome.file_id.kind is Kind.STOP:
            self._stops.transfer_ended(outcome)
        elif task is not None:
            task.transfer_ended(outcome)
        else:
            self._finals.transfer_ended(outcome)

    def _read_hellos(self, arrived: list[Path] | None = None) -> None:
        for name in self._nodes.scan(arrived):
            with bulkhead(lambda _: None):  # one node's announcement disturbs no other
                self._hello_arrived(name)

    def _hello_arrived(self, name: str) -> None:
        known = self._nodes.announcement(name)
        node = Node(name, known.at, known.hello.shown.model_dump(mode="json"))
        self.writer.submit(partial(self._store.nodes.record, node))
        self._context.known_data.learn(known.hello, self._nodes.online())
        reports = {report.task: report for report in known.hello.tasks}
        self._finals.reported(name, reports)
        self._tasks.approvals.node_reported(name, reports)
        for uid, task in self._tasks.running.items():
            task.node_reported(name, reports.pop(uid, None))
        given = self._store.tasks.given_to(name, reports)
        unknown = [uid for uid in reports if uid not in given]  # deleted, or invented
        free = max(0, MAX_UNKNOWN_TASKS - self._stops.under_way(name))
        for uid in (*given, *unknown[:free]):
            active, pending = uid in self._tasks, self._finals.is_pending(name, uid)
            if missed_the_end(reports[uid], active=active, final_pending=pending):
                self._stops.send([name], uid, "the task is over")

    def _poll_database(self) -> None:
        """Read stops, deletions and new tasks from the database; signals only make this happen earlier."""
        self._poll.start(self.config.poll_seconds)
        for item in (*self.spool.arrived(Kind.INITPARAM), *self.spool.arrived(Kind.STOP)):
            clear_file(item.path)
        self._tasks.poll()
        self._keep_initial_files()
        limit_states(self._context.kept, self._store, self.config.retention.continue_tasks)
        delete_tasks(self.spool.checkpoints, self._finals, self._context.kept, self._store)

    def _keep_initial_files(self) -> None:
        """Link what unfinished tasks start from, before checkpoints are removed."""
        starting = [task.initial for task in self._store.tasks.with_initial() if task.initial is not None]
        self._context.initial_files.keep(starting)

    def _keep_house(self) -> None:
        self._housekeeping.start(HOUSEKEEPING_SECONDS)
        self._store.nodes.keep(self._nodes.addresses)
        rule = self.config.retention
        if (rule.keep_days, rule.resume_days) != (None, None) and self._clock.now() is None:
            rule = rule.model_copy(update={"keep_days": None, "resume_days": None})
        if rule.resume_days is not None:
            remove_old_states(self._context.kept, self._store, rule.resume_days, time.time())
        self._keep_initial_files()
        apply_retention(self.spool.checkpoints, self._store, rule, time.time())

    def end_turn(self) -> None:
        """Let tasks act on the time that has passed, and publish numbers and status."""
        self._tasks.tick()
        self._tasks.resume_interrupted()
        if self._tasks.reap():
            self._poll.start()
        self.metrics.tasks.labels("running").set(len(self._tasks.running))
        self.metrics.tasks.labels("waiting").set(len(self._tasks.waiting))
        online = self._nodes.online()
        self.metrics.nodes(self._nodes.addresses, {name: online[name].certificate_expires_at for name in online})
        self.publish_status(self._tasks.status)


def main() -> int:
    """`fedsim-server`."""
    return daemon_main(ServerDaemon)
