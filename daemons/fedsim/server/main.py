"""The server daemon's loop: waits for files, answers, signals and time; wakes what they concern."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector

from fedsim import __version__
from fedsim.config import Limits, ServerConfig
from fedsim.course.plan import Impossible, Plan, Waiting, make_plan
from fedsim.daemon import Daemon, daemon_main
from fedsim.errors import BadInput, DiskFull, Unavailable
from fedsim.metrics import ServerMetrics
from fedsim.server.finals import FinalModels
from fedsim.server.folder import TaskFolder
from fedsim.server.housekeeping import apply_retention, delete_tasks, sweep_leftovers
from fedsim.server.nodes import Nodes
from fedsim.server.platform import Platform
from fedsim.server.running import RunningTask
from fedsim.server.stops import Stops
from fedsim.server.work import AGGREGATOR, EVALUATOR
from fedsim.spool.clear import clear_file, clear_task
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Arrived, Spool
from fedsim.spool.room import has_room, noticing_a_full_disk
from fedsim.spool.watch import Watch
from fedsim.store import open_store
from fedsim.store.interface import Event, Node, Progress, Store, Task, TaskState
from fedsim.wire.frames import room_for_meta
from fedsim.wire.outbox import Outbox
from fedsim.wire.peer import Identity
from fedsim.wire.trust import Credentials
from fedsim.worker.forking import ForkServers
from fedsim.worker.inspector import Inspected, OwnData, Wanted
from fedsim.worker.pool import WorkerPool

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
        self._running: dict[str, RunningTask] = {}
        self._waiting: dict[str, tuple[Task, str]] = {}
        self._own: Inspected | None = None
        self._fork_servers = ForkServers(self._selector)
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
        if hasattr(self, "_running"):
            self._let_go()
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
                for uid, running in self._running.items():
                    self._store.set_progress(uid, Progress(running.round, "waiting", (f"the server: {error}",)))
        self._let_go()

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
        for task in self._store.unfinished_tasks():
            try:
                plan = TaskFolder(self._spool.folder(Kind.GLOBALPARAM), task.uid).read_plan()
            except BadInput as error:  # its model was uninstalled, or another version wrote it
                self._end_early(task, TaskState.FAILED, f"it cannot be taken up again: {error}")
                continue
            if plan is None:
                self._waiting[task.uid] = (task, "")
            elif (missing := self._missing_node(plan)) is not None:
                self._stops.promise(plan.nodes, task.uid, missing)
                self._end_early(task, TaskState.FAILED, missing)
                self._stops.tell(plan.nodes, task.uid, missing)
            else:
                self._run(plan)
        self._stops.take_up()
        self._finals.take_up(self._is_finished)
        self._see_nodes()  # last: whatever they report is judged by the tasks that there are
        self._poll_at = 0.0

    def _is_finished(self, uid: str) -> bool | None:
        task = self._store.task_by_uid(uid)
        return None if task is None else task.state.finished

    def _missing_node(self, plan: Plan) -> str | None:
        gone = [name for name in plan.nodes if name not in self._nodes.addresses]
        return f"{', '.join(gone)} took part, but server.yml does not name it any more" if gone else None

    def _let_go(self) -> None:
        for running in self._running.values():
            running.let_go()
        self._running.clear()
        self._waiting.clear()

    def _inspect(self) -> None:
        """Look at the server's own data sets, in a worker; plans wait for what it says."""
        self._own_data.look(Wanted(self.config.data, tuple(self.config.datasets), device="cpu"))

    def _inspected(self, inspected: Inspected) -> None:
        self._own = inspected
        self._poll_at = 0.0

    # ------------------------------------------------------------ what happens

    def _files_arrived(self) -> None:
        arrived: dict[Kind, list[Arrived]] = {kind: [] for kind in Kind}
        for item in self._spool.among(self._watch.drain()):
            arrived[item.id.kind].append(item)
        if arrived[Kind.HELLO]:
            self._see_nodes()
            self._start_waiting()
        late = set()
        for item in (*arrived[Kind.TESTSET], *arrived[Kind.LOCALPARAM]):
            uid = item.id.task or ""
            running = self._running.get(uid)
            if running is not None:
                running.arrived(item)
            elif uid not in self._waiting:
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
            running = self._running.get(outcome.file_id.task or "")
            if running is not None:
                running.sent(outcome)
            else:
                self._finals.sent(outcome)

    def _see_nodes(self) -> None:
        for name in self._nodes.look():
            known = self._nodes.announcement(name)
            self._store.record_node(Node(name, known.at, known.hello.model_dump(mode="json")))
            reports = {report.task: report for report in known.hello.tasks}
            self._finals.reported(name, reports)
            for uid, running in list(self._running.items()):
                running.node_reported(name, reports.pop(uid, None))
            for uid, report in reports.items():
                # The node still holds a task that is over: it missed the end.
                missed = report.state != "closing" and not self._finals.owes(name, uid)
                if missed and uid not in self._waiting:
                    self._stops.tell([name], uid, "the task is over")

    def _time_passed(self) -> None:
        now = time.monotonic()
        self._outbox.check()
        self._own_data.tick()
        for running in self._running.values():
            if running.wake_at is not None and now >= running.wake_at:
                running.tick()
        if now >= self._poll_at:
            self._poll_at = now + self.config.poll_seconds
            self._poll()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_SECONDS
            self._store.keep_nodes(self._nodes.addresses)
            apply_retention(self._checkpoints, self._store, self.config.retention, time.time())
        self._reap()
        self._count()
        self.status("; ".join(running.status for running in self._running.values()) or self._idle_status())

    def _count(self) -> None:
        self.metrics.tasks.labels("running").set(len(self._running))
        self.metrics.tasks.labels("waiting").set(len(self._waiting))
        self.metrics.nodes(self._nodes.addresses, self._nodes.online())

    def _idle_status(self) -> str:
        return "; ".join(f"task {task.number}: {why}" for task, why in self._waiting.values()) or "waiting for a task"

    def _next_wake(self) -> float:
        wakes = [self._poll_at, self._housekeeping_at, self._own_data.wake_at]
        for running in self._running.values():
            wakes += [at for at in (running.wake_at, running.show()) if at is not None]
        return min(wakes)

    # ------------------------------------------------------------ tasks

    def _poll(self) -> None:
        """Look at the database: stops, deletions, new tasks. What signals hint at is found here without them, too."""
        for item in (*self._spool.arrived(Kind.INITPARAM), *self._spool.arrived(Kind.STOP)):
            clear_file(item.path)
        for task in self._store.unfinished_tasks():
            if task.stop_requested:
                self._stop(task)
        delete_tasks(self._checkpoints, self._finals, self._store)
        for running in self._running.values():
            if (missing := self._missing_node(running.plan)) is not None:
                running.broken(missing)
        self._start_waiting()
        # A task that waits for its nodes holds nobody up: the next is claimed as well.
        while self._own is not None and len(self._running) < self.config.max_running_tasks:
            claimed = self._store.claim_next_task(time.time())
            if claimed is None:
                break
            self.log.info("task_claimed", task=claimed.number, task_uid=claimed.uid)
            self._waiting[claimed.uid] = (claimed, "")
            self._plan(claimed.uid, self._own)

    def _stop(self, task: Task) -> None:
        running = self._running.get(task.uid)
        if running is not None:
            running.stop("stopped by a user")
        elif self._waiting.pop(task.uid, None) is not None:
            self._end_early(task, TaskState.STOPPED, "stopped by a user before it started")

    def _start_waiting(self) -> None:
        """Plan the claimed tasks, oldest first, as far as nodes and the limit allow."""
        if self._own is None:
            return
        for uid in sorted(self._waiting, key=lambda uid: self._waiting[uid][0].number):
            if len(self._running) >= self.config.max_running_tasks:
                return
            self._plan(uid, self._own)

    def _plan(self, uid: str, own: Inspected) -> None:
        task, said = self._waiting[uid]
        wanted = task.settings.dataset
        last_model = FileId(kind=Kind.GLOBALPARAM, task=uid, round=task.settings.num_rounds + 1)
        plan = make_plan(
            task=uid,
            number=task.number,
            settings=task.settings,
            hellos=self._nodes.online(),
            not_heard=self._nodes.not_heard(),
            server_dataset=next((dataset for dataset in own.datasets if dataset.name == wanted), None),
            server_problem=own.unusable.get(wanted),
            # Nobody knows here what the nodes' receivers are set to; what they take by default, each should.
            broadcast_bytes=room_for_meta(Limits().max_header_bytes, last_model),
            version=__version__,
        )
        match plan:
            case Waiting(reason):
                if reason != said:
                    self.log.info("task_waits", task=task.number, reason=reason)
                    self._store.set_progress(uid, Progress(0, "waiting", waiting_for=(reason,)))
                    self._waiting[uid] = (task, reason)
            case Impossible(reason):
                del self._waiting[uid]
                self._end_early(task, TaskState.FAILED, reason)
            case Plan():
                del self._waiting[uid]
                TaskFolder(self._spool.folder(Kind.GLOBALPARAM), uid).write_plan(plan)
                self._run(plan)

    def _end_early(self, task: Task, state: TaskState, reason: str) -> None:
        self._store.move_task(task.uid, state, reason=reason, now=time.time())
        clear_task(self._spool, task.uid)
        self._store.add_event(Event(time.time(), state.value, reason, task=task.number))
        self.log.info("task_finished", task=task.number, outcome=state.value, reason=reason)
        self.metrics.ended.labels(state.value).inc()

    def _run(self, plan: Plan) -> None:
        self._store.set_nodes(plan.task, plan.nodes)
        workers = WorkerPool(
            (AGGREGATOR, EVALUATOR),
            self._fork_servers,
            self._workers_ready(plan.task),
            threads=self.config.threads_per_worker,
            max_restarts=self.config.max_worker_restarts,
            log={"task": plan.number},
            version=plan.version,
            on_death=self.metrics.worker_restarts.inc,
        )
        running = RunningTask(plan, self._platform, workers)
        self._running[plan.task] = running
        running.start()

    def _workers_ready(self, uid: str) -> Callable[[], None]:
        def ready() -> None:
            if uid in self._running:
                self._running[uid].workers_ready()

        return ready

    def _reap(self) -> None:
        """Forget the tasks that have ended, and look for the next."""
        for uid in [uid for uid, running in self._running.items() if running.outcome is not None]:
            del self._running[uid]
            self._poll_at = 0.0


def main() -> None:
    """`fedsim-server`."""
    daemon_main(ServerDaemon)
