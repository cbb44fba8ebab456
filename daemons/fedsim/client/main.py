"""The node daemon's loop: waits for files, workers, signals and time; announces the node."""

from __future__ import annotations

import time
from collections.abc import Collection
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from fedsim.client.announcing import make_hello
from fedsim.client.audit_log import AuditLog
from fedsim.client.task import Platform, RunningTask, refusal
from fedsim.config import ClientConfig
from fedsim.daemon import Daemon, daemon_main
from fedsim.errors import BadInput, DiskFull
from fedsim.messages import Assignment, Stop, read_message
from fedsim.metrics import NodeMetrics
from fedsim.spool.clear import clear_file, clear_other_tasks, clear_task
from fedsim.spool.disk_space import has_room, noticing_a_full_disk
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool
from fedsim.spool.watch import Watch
from fedsim.wire.outbox import Outbox
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome, Status
from fedsim.wire.tls import Credentials
from fedsim.worker.forking import ForkServers
from fedsim.worker.inspector import Inspected, OwnData, Wanted

WATCHDOG_SECONDS = 5.0
ROOM_SECONDS = 3.0
SWEEP_SECONDS = 600.0
# What a reload cannot change: it stands in sockets, files and the names that others know.
FIXED = ("name", "server", "server_name", "spool", "data", "insecure_plaintext", "metrics")


class ClientDaemon(Daemon[ClientConfig]):
    """Trains this node's clients on its own data; what may be trained and what leaves is client.yml's to say."""

    name = "client"
    config_model = ClientConfig
    metrics_model = NodeMetrics
    metrics: NodeMetrics

    def setup(self) -> None:
        """Open the spool, start the sender, look at the data."""
        config = self.config
        self._selector = DefaultSelector()
        self._selector.register(self.wake_fd, EVENT_READ, self.drain_wake)
        self._spool = Spool(config.spool)
        (config.spool / "checkpoints").mkdir(mode=0o750, exist_ok=True)
        self._watch = Watch(*(self._spool.folder(kind) for kind in (Kind.INITPARAM, Kind.GLOBALPARAM, Kind.STOP)))
        self._selector.register(self._watch, EVENT_READ, self._files_arrived)
        config.data.mkdir(parents=True, exist_ok=True)
        self._identity = Identity(config.name, Role.CLIENT)
        self._outbox = Outbox(self._identity, Credentials.of(config.tls, self._identity))
        self._selector.register(self._outbox, EVENT_READ, self._transfers_ended)
        self._server = Peer(config.server_name, config.server.address, config.server.port)
        self._fork_servers = ForkServers(self._selector)
        self._platform = Platform(
            config=config,
            spool=self._spool,
            outbox=self._outbox,
            server=self._server,
            fork_servers=self._fork_servers,
            leaving=AuditLog(config.spool / "left.jsonl"),
            announce=self._announce_soon,
            metrics=self.metrics,
        )
        self._running: dict[str, RunningTask] = {}
        self._inspected: Inspected | None = None
        self._data = OwnData(self._fork_servers, self._data_seen)
        self._announce_at = float("inf")
        self._hello_problem = ""
        self._full = ""
        self._room_at: float | None = None
        self._orphans: set[str] = set()
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        keep = {item.id.task or "" for item in self._spool.arrived(Kind.INITPARAM)}
        # Another `initparam` may come at this moment.
        for uid in sorted(clear_other_tasks(self._spool, keep, set(Kind) - {Kind.INITPARAM})):
            self.log.info("leftovers_swept", uid=uid)
        self._look_at_data()

    def run_once(self) -> None:
        """Wait for something to happen, deal with it."""
        try:
            with noticing_a_full_disk():
                self._turn()
        except DiskFull as error:
            self._disk_full(str(error))

    def _turn(self) -> None:
        wakes = [self._announce_at, self._sweep_at, self._data.wake_at, time.monotonic() + WATCHDOG_SECONDS]
        if self._room_at is not None:
            wakes.append(self._room_at)
        for key, _ in self._selector.select(max(0.0, min(wakes) - time.monotonic())):
            key.data()
        now = time.monotonic()
        if self._room_at is not None and now >= self._room_at:
            self._look_for_room()
        self._data.tick()
        self._outbox.check()
        for uid in [uid for uid, running in self._running.items() if running.ended]:
            del self._running[uid]
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._sweep()
        if now >= self._announce_at:
            self._announce()
        self.metrics.tasks.labels("running").set(len(self._running))
        self.metrics.full.labels("room").set(bool(self._full))
        doing = "; ".join(running.status for running in self._running.values())
        idle = "waiting for a task" if self._inspected is not None else "looking at the data"
        self.status(self._full or doing or idle)

    def _disk_full(self, reason: str) -> None:
        """Let go of the tasks, tell the server why, and go on with them when there is room.

        They stay in the announcements: who announces a task no longer has ended it, and gets no final model of it.
        """
        self.log.error("disk_full", problem=reason)
        for running in self._running.values():
            running.let_go()
        self._full = reason
        self._room_at = time.monotonic() + ROOM_SECONDS
        self._announce_soon()

    def _look_for_room(self) -> None:
        if has_room(self.config.spool, self.config.min_free_bytes):
            self.log.info("disk_has_room")
            self._full, self._room_at = "", None
            self._look()
            self._announce_soon()
        else:
            self._room_at = time.monotonic() + ROOM_SECONDS

    def reload(self, config: ClientConfig) -> None:
        """Capacity, certificates, data sets, rules, workers and times change at once; the rest with a restart.

        A task that is under way goes on as it was begun.
        """
        changed = [key for key in FIXED if getattr(config, key) != getattr(self.config, key)]
        if changed:
            self.log.warning("restart_needed", keys=", ".join(changed))
        config = config.model_copy(update={key: getattr(self.config, key) for key in FIXED})
        self._outbox.reload(Credentials.of(config.tls, self._identity), {self._server})
        super().reload(config)
        self._platform.config = config
        self._look_at_data()

    @classmethod
    def log_fields(cls, config: ClientConfig) -> dict[str, Any]:
        """Who speaks, for whoever reads the journals of several hosts."""
        return {"node": config.name}

    def teardown(self) -> None:
        """Kill the workers; running tasks are taken up again at the next start."""
        if hasattr(self, "_running"):
            for running in self._running.values():
                running.let_go()
        if hasattr(self, "_data"):
            self._data.close()
        if hasattr(self, "_fork_servers"):
            self._fork_servers.close()
        if hasattr(self, "_outbox"):
            self._outbox.close()

    # ------------------------------------------------------------ the data

    def _look_at_data(self) -> None:
        self._data.look(Wanted(self.config.data, tuple(self.config.datasets), self.config.device))

    def _data_seen(self, inspected: Inspected) -> None:
        first = self._inspected is None
        self._inspected = inspected
        self.metrics.problems.set(len(inspected.problems))
        if first:
            self._look()
        self._announce_soon()

    # ------------------------------------------------------------ telling the server

    def _announce_soon(self) -> None:
        if self._inspected is not None:
            self._announce_at = 0.0

    def _announce(self) -> None:
        assert self._inspected is not None  # noqa: S101 - nothing is announced before the data is seen
        self._announce_at = time.monotonic() + self.config.announce_seconds
        remarks = (*([self._full] if self._full else []), *self._data.remarks)
        hello = make_hello(
            self.config, self._inspected, [running.report for running in self._running.values()], remarks
        )
        body = hello.model_dump_json().encode()
        self._outbox.send_newest(self._server, FileId(kind=Kind.HELLO), body)

    # ------------------------------------------------------------ tasks

    def _sweep(self) -> None:
        """Clear what a server sent for tasks that are over here: at the second look, as an `initparam` may follow."""
        found = {item.id.task or "" for item in self._spool.arrived(Kind.GLOBALPARAM)}
        orphans = found - {item.id.task or "" for item in self._spool.arrived(Kind.INITPARAM)}
        for uid in sorted(orphans & self._orphans):
            clear_task(self._spool, uid)
            self.log.info("leftovers_swept", uid=uid)
        self._orphans = orphans

    def _files_arrived(self) -> None:
        arrived = self._spool.among(self._watch.drain())
        if self._inspected is not None:  # before, nothing runs; then everything is looked at
            self._look({item.id.task or "" for item in arrived if item.id.kind is Kind.GLOBALPARAM})

    def _look(self, uids: Collection[str] = ()) -> None:
        """See what has come: tasks, global models of the tasks `uids`, and stops.

        Stops come last: a final model that came before its task's stop is kept.
        """
        self._start_assigned()
        for uid in uids:
            if uid in self._running:
                self._running[uid].look_for_global()
        self._heed_stops()

    def _heed_stops(self) -> None:
        for item in self._spool.arrived(Kind.STOP):
            uid = item.id.task or ""
            try:
                reason = read_message(Stop, item.path.read_bytes(), "the server's stop").reason
            except BadInput as error:
                reason = str(error)
            clear_file(item.path)
            running = self._running.get(uid)
            if running is not None:
                running.stop(reason)
            else:
                clear_task(self._spool, uid)

    def _start_assigned(self) -> None:
        if self._full:
            return
        fresh = []
        for item in self._spool.arrived(Kind.INITPARAM):
            known = self._running.get(item.id.task or "")
            if known is not None and not known.let_go_of:
                continue
            try:
                assignment = read_message(Assignment, item.path.read_bytes(), "the server's initparam")
            except BadInput as error:
                self.log.warning("initparam_not_understood", problem=str(error))
                clear_file(item.path)
                continue
            self._running[assignment.task] = RunningTask(assignment, self._platform)
            fresh.append(self._running[assignment.task])
        for running in fresh:  # all are known by now, should the disk be full again for one
            running.start(refusal(running.assignment, self.config))

    def _transfers_ended(self) -> None:
        for outcome in self._outbox.ended():
            if outcome.file_id.kind is Kind.HELLO:
                self._announced(outcome)
            running = self._running.get(outcome.file_id.task or "")
            if running is not None:
                running.sent(outcome)

    def _announced(self, outcome: Outcome) -> None:
        """Tell of a refusal once, not at every announcement, and when it is over."""
        problem = outcome.code if outcome.status is Status.REFUSED else ""
        if problem == self._hello_problem:
            return
        self._hello_problem = problem
        if problem:
            self.log.error("hello_refused", server=str(outcome.peer), problem=outcome.message)
        else:
            self.log.info("hello_taken", server=str(outcome.peer))


def main() -> None:
    """`fedsim-client`."""
    daemon_main(ClientDaemon)
