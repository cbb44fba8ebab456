"""The server daemon's loop: waits for files, answers, signals and time; wakes what they concern."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector

from fedsim.config import ServerConfig
from fedsim.daemon import Daemon, daemon_main
from fedsim.errors import DiskFull, Unavailable
from fedsim.metrics import ServerMetrics
from fedsim.server.context import Platform
from fedsim.server.finals import FinalModels
from fedsim.server.housekeeping import apply_retention, delete_tasks, sweep_leftovers
from fedsim.server.nodes import Nodes
from fedsim.server.stops import Stops
from fedsim.server.tasks import Tasks
from fedsim.spool.clear import clear_file, clear_task
from fedsim.spool.disk_space import has_room, noticing_a_full_disk
from fedsim.spool.files import Kind, Role
from fedsim.spool.layout import Arrived, Spool
from fedsim.spool.watch import Watch
from fedsim.store import Store, open_store
from fedsim.store.records import Node, Progress
from fedsim.wire.outbox import Outbox
from fedsim.wire.peer import Identity
from fedsim.wire.tls import Credentials
from fedsim.worker.forking import ForkServers
from fedsim.worker.inspector import Inspected, OwnData, Wanted

HOUSEKEEPING_SECONDS = 3600.0
WATCHDOG_SECONDS = 5.0
DATABASE_SECONDS = 1.0
ROOM_SECONDS = 3.0
# What a reload cannot change: it stands in sockets, files and the names that others know.
FIXED = ("name", "spool", "database", "database_password_file", "insecure_plaintext", "metrics")


class ServerDaemon(Daemon[ServerConfig]):
    """Leads the tasks: chooses nodes, sends global models, gathers updates, aggregates, tests, saves checkpoints."""

    name = "server"
    config_model = ServerConfig
    metrics_model = ServerMetrics
    metrics: ServerMetrics

    def setup(self) -> None:
        """Open the spool, start the sender; the database is waited for."""
        self._selector = DefaultSelector()
        self._selector.register(self.wake_fd, EVENT_READ, self.drain_wake)
        self._store: Store = open_store(self.config.database, self.config.database_password_file)
        self._spool = Spool(self.config.spool)
        self._checkpoints = self.config.spool / "checkpoints"
        self._checkpoints.mkdir(mode=0o750, exist_ok=True)
        kinds = (Kind.HELLO, Kind.INITPARAM, Kind.STOP, Kind.LOCALPARAM, Kind.TESTSET)
        self._watch = Watch(*(self._spool.folder(kind) for kind in kinds))
        self._selector.register(self._watch, EVENT_READ, self._files_arrived)
        self._identity = Identity(self.config.name, Role.SERVER)
        self._outbox = Outbox(self._identity, Credentials.of(self.config.tls, self._identity))
        self._selector.register(self._outbox, EVENT_READ, self._transfers_ended)
        self._nodes = Nodes(self.config, self._spool)
        self._stops = Stops(self.config.spool / "nodes.json", self._outbox, self._nodes)
        self._finals = FinalModels(self.config.spool / "final", self._outbox, self._nodes, self._stops)
        self._platform = Platform(
            self.config, self._store, self._spool, self._outbox, self._nodes, self._finals, self._stops, self.metrics
        )
        self._fork_servers = ForkServers(self._selector)
        self._tasks = Tasks(self._platform, self._fork_servers)
        self._own_data = OwnData(self._fork_servers, self._inspected)
        self._poll_at = 0.0
        self._housekeeping_at = 0.0
        self._full = False
        self._inspect()
        self._connect()

    def run_once(self) -> None:
        """Wait for something to happen, deal with it."""
        try:
            with noticing_a_full_disk():
                ready = self._selector.select(max(0.0, min(self._next_wake() - time.monotonic(), WATCHDOG_SECONDS)))
                for key, _ in ready:
                    key.data()
                self._time_passed()
        except Unavailable as error:
            self._lost(error)
            self._connect()

    def reload(self, config: ServerConfig) -> None:
        """Nodes, certificates, time limits, data sets, workers, retention change at once; the rest with a restart."""
        changed = [key for key in FIXED if getattr(config, key) != getattr(self.config, key)]
        if changed:
            self.log.warning("restart_needed", keys=", ".join(changed))
        config = config.model_copy(update={key: getattr(self.config, key) for key in FIXED})
        credentials = Credentials.of(config.tls, self._identity)
        super().reload(config)
        self._platform.config = config
        for old, new in self._nodes.reload(config):
            self._outbox.redirect(old, new)
        self._outbox.reload(credentials, set(self._nodes.addresses.values()))
        self._stops.reload()
        self._poll_at = self._housekeeping_at = 0.0
        self._inspect()

    def teardown(self) -> None:
        """Kill the workers; running tasks are taken up again at the next start."""
        if hasattr(self, "_tasks"):
            self._tasks.let_go()
        if hasattr(self, "_own_data"):
            self._own_data.close()
        if hasattr(self, "_fork_servers"):
            self._fork_servers.close()
        if hasattr(self, "_outbox"):
            self._outbox.close()
            self._store.close()

    # ------------------------------------------------------------ starting and starting again

    def _connect(self) -> None:
        """Take the tasks up as soon as there are room and database, and again should one go away meanwhile."""
        while not self.stopping:
            self._wait_for_room()
            self._wait_for_database()
            try:
                with noticing_a_full_disk():
                    if not self.stopping:
                        self._take_up()
            except Unavailable as error:
                self._lost(error)
            else:
                return

    def _lost(self, error: Unavailable) -> None:
        """Something went away that every task needs: let go of them, until they can be taken up again."""
        self._full = isinstance(error, DiskFull)
        self.log.error("disk_full" if self._full else "database_lost", problem=str(error))
        if self._full:
            with suppress(Unavailable):  # the database may lie on the same disk
                for uid, running in self._tasks.running.items():
                    self._store.tasks.set_progress(uid, Progress(running.round, "waiting", (f"the server: {error}",)))
        self._tasks.let_go()

    def _wait_for_room(self) -> None:
        """After the disk was full: until there is room again; a stop ends the wait."""
        self.metrics.waiting.labels("room").set(self._full)
        while self._full and not self.stopping:
            self.status(f"the disk of {self.config.spool} is full: waiting for {self.config.min_free_bytes} bytes")
            self._pause(ROOM_SECONDS)
            self._full = not has_room(self.config.spool, self.config.min_free_bytes)
        self.metrics.waiting.labels("room").set(0)

    def _pause(self, seconds: float) -> None:
        """Wait without a stall that systemd would punish. Only signals wake: files lie where they are found later."""
        self.still_starting()
        if select.select([self.wake_fd], [], [], seconds)[0]:
            self.drain_wake()

    def _wait_for_database(self) -> None:
        """Until the database answers and its schema is the code's; a stop ends the wait."""
        said = ""
        while not self.stopping:
            try:
                self._store.migrate()
                self._store.check()
            except Unavailable as error:
                if str(error) != said:
                    said = str(error)
                    self.log.warning("waiting_for_database", problem=said)
                    self.metrics.waiting.labels("database").set(1)
                self.status(f"waiting for the database: {error}")
                self._pause(DATABASE_SECONDS)
            else:
                break
        self.metrics.waiting.labels("database").set(0)

    def _take_up(self) -> None:
        """Go on with the tasks that were claimed or running."""
        sweep_leftovers(self._spool, self._store)
        self._tasks.take_up()
        self._stops.take_up()
        self._finals.take_up(self._is_finished)
        self._see_nodes()  # last: whatever they report is judged by the tasks that there are
        self._poll_at = 0.0

    def _is_finished(self, uid: str) -> bool | None:
        task = self._store.tasks.by_uid(uid)
        return None if task is None else task.state.finished

    def _inspect(self) -> None:
        """Look at the server's own data sets, in a worker; plans wait for what it says."""
        self._own_data.look(Wanted(self.config.data, tuple(self.config.datasets), device="cpu"))

    def _inspected(self, inspected: Inspected) -> None:
        self._tasks.own = inspected
        self._poll_at = 0.0

    # ------------------------------------------------------------ what happens

    def _files_arrived(self) -> None:
        arrived: dict[Kind, list[Arrived]] = {kind: [] for kind in Kind}
        for item in self._spool.among(self._watch.drain()):
            arrived[item.id.kind].append(item)
        if arrived[Kind.HELLO]:
            self._see_nodes()
            self._tasks.start_waiting()
        late = set()
        for item in (*arrived[Kind.TESTSET], *arrived[Kind.LOCALPARAM]):
            uid = item.id.task or ""
            running = self._tasks.running.get(uid)
            if running is not None:
                running.arrived(item)
            elif uid not in self._tasks:
                late.add(uid)
        for uid in late:  # for a task that is over
            clear_task(self._spool, uid, (Kind.LOCALPARAM, Kind.TESTSET))
        if arrived[Kind.INITPARAM] or arrived[Kind.STOP]:
            self._poll_at = 0.0

    def _transfers_ended(self) -> None:
        for outcome in self._outbox.ended():
            if outcome.file_id.kind is Kind.STOP:
                self._stops.sent(outcome)
                continue
            running = self._tasks.running.get(outcome.file_id.task or "")
            if running is not None:
                running.sent(outcome)
            else:
                self._finals.sent(outcome)

    def _see_nodes(self) -> None:
        for name in self._nodes.look():
            known = self._nodes.announcement(name)
            self._store.nodes.record(Node(name, known.at, known.hello.model_dump(mode="json")))
            reports = {report.task: report for report in known.hello.tasks}
            self._finals.reported(name, reports)
            for uid, running in self._tasks.running.items():
                running.node_reported(name, reports.pop(uid, None))
            for uid, report in reports.items():
                # The node still holds a task that is over: it missed the end.
                missed = report.state != "closing" and not self._finals.owes(name, uid)
                if missed and uid not in self._tasks:
                    self._stops.tell([name], uid, "the task is over")

    def _time_passed(self) -> None:
        now = time.monotonic()
        self._outbox.check()
        self._own_data.tick()
        for running in self._tasks.running.values():
            if running.wake_at is not None and now >= running.wake_at:
                running.tick()
        if now >= self._poll_at:
            self._poll_at = now + self.config.poll_seconds
            self._look()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_SECONDS
            self._store.nodes.keep(self._nodes.addresses)
            apply_retention(self._checkpoints, self._store, self.config.retention, time.time())
        if self._tasks.reap():
            self._poll_at = 0.0
        self._count()
        self.status(self._tasks.status)

    def _look(self) -> None:
        """Look at the database: stops, deletions, new tasks. What signals hint at is found here without them, too."""
        for item in (*self._spool.arrived(Kind.INITPARAM), *self._spool.arrived(Kind.STOP)):
            clear_file(item.path)
        self._tasks.look()
        delete_tasks(self._checkpoints, self._finals, self._store)

    def _count(self) -> None:
        self.metrics.tasks.labels("running").set(len(self._tasks.running))
        self.metrics.tasks.labels("waiting").set(len(self._tasks.waiting))
        self.metrics.nodes(self._nodes.addresses, self._nodes.online())

    def _next_wake(self) -> float:
        wakes = [self._poll_at, self._housekeeping_at, self._own_data.wake_at]
        for running in self._tasks.running.values():
            wakes += [at for at in (running.wake_at, running.show()) if at is not None]
        return min(wakes)


def main() -> None:
    """`fedsim-server`."""
    daemon_main(ServerDaemon)
