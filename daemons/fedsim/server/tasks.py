"""The tasks that the server has claimed: they wait until nodes are found, run, and end."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedsim import __version__
from fedsim.config import Limits
from fedsim.errors import BadInput, Unavailable
from fedsim.log import get_logger
from fedsim.server.context import Platform
from fedsim.server.task import RunningTask
from fedsim.server.task_dir import TaskDir
from fedsim.server.task_jobs import AGGREGATOR, EVALUATOR
from fedsim.spool.clear import clear_task
from fedsim.spool.files import FileId, Kind
from fedsim.state_machines.plan import Impossible, Plan, Waiting, make_plan
from fedsim.store.records import Event, Progress, Task, TaskState
from fedsim.wire.frames import room_for_meta
from fedsim.worker.forking import ForkServers
from fedsim.worker.inspector import Inspected
from fedsim.worker.pool import WorkerPool


class Tasks:
    """Every task between its claim and its end. `own` are the server's data sets; before they are known none begins."""

    def __init__(self, platform: Platform, fork_servers: ForkServers) -> None:
        self.own: Inspected | None = None
        self.running: dict[str, RunningTask] = {}
        self.waiting: dict[str, Task] = {}
        self._reasons: dict[str, str] = {}
        self._platform = platform
        self._fork_servers = fork_servers
        self._log = get_logger()

    def __contains__(self, uid: str) -> bool:
        """Whether this task is between its claim and its end."""
        return uid in self.running or uid in self.waiting

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        if self.running:
            return "; ".join(running.status for running in self.running.values())
        waiting = (f"task {task.number}: {self._reasons.get(uid, '')}" for uid, task in self.waiting.items())
        return "; ".join(waiting) or "waiting for a task"

    def take_up(self) -> None:
        """Go on with the tasks that were claimed or running when the server stopped."""
        for task in self._platform.store.tasks.unfinished():
            try:
                plan = self._folder(task.uid).read_plan()
            except BadInput as error:  # its model was uninstalled, or another version wrote it
                self._end_early(task, TaskState.FAILED, f"it cannot be taken up again: {error}")
                continue
            if plan is None:
                self.waiting[task.uid] = task
            elif (missing := self._missing_node(plan)) is not None:
                self._platform.stops.promise(plan.nodes, task.uid, missing)
                self._end_early(task, TaskState.FAILED, missing)
                self._platform.stops.tell(plan.nodes, task.uid, missing)
            else:
                self._run(plan)

    def let_go(self) -> None:
        """End what works for tasks here, not the tasks: they can be taken up again."""
        for running in self.running.values():
            running.let_go()
        self.running.clear()
        self.waiting.clear()
        self._reasons.clear()

    def look(self) -> None:
        """See in the database which tasks are to be stopped, and which come next."""
        for task in self._platform.store.tasks.unfinished():
            if task.stop_requested:
                self._stop(task)
        for running in self.running.values():
            if (missing := self._missing_node(running.plan)) is not None:
                running.broken(missing)
        self.start_waiting()
        # A task that waits for its nodes holds nobody up: the next is claimed as well.
        while self.own is not None and self._may_run_more:
            claimed = self._platform.store.tasks.claim_next(time.time())
            if claimed is None:
                break
            self._log.info("task_claimed", task=claimed.number, task_uid=claimed.uid)
            self.waiting[claimed.uid] = claimed
            self._plan(claimed, self.own)

    def start_waiting(self) -> None:
        """Plan the claimed tasks, oldest first, as far as nodes and the limit allow."""
        if self.own is None:
            return
        for task in sorted(self.waiting.values(), key=lambda task: task.number):
            if not self._may_run_more:
                return
            self._plan(task, self.own)

    def reap(self) -> bool:
        """Forget the tasks that have ended; whether there were some, so that others may run."""
        ended = [uid for uid, running in self.running.items() if running.outcome is not None]
        for uid in ended:
            del self.running[uid]
        return bool(ended)

    @property
    def _may_run_more(self) -> bool:
        return len(self.running) < self._platform.config.max_running_tasks

    def _folder(self, uid: str) -> TaskDir:
        return TaskDir(self._platform.spool.folder(Kind.GLOBALPARAM), uid)

    def _missing_node(self, plan: Plan) -> str | None:
        gone = [name for name in plan.nodes if name not in self._platform.nodes.addresses]
        return f"{', '.join(gone)} took part, but server.yml does not name it any more" if gone else None

    def _stop(self, task: Task) -> None:
        running = self.running.get(task.uid)
        if running is not None:
            running.stop("stopped by a user")
        elif self._waits_no_more(task.uid):
            self._end_early(task, TaskState.STOPPED, "stopped by a user before it started")

    def _waits_no_more(self, uid: str) -> bool:
        self._reasons.pop(uid, None)
        return self.waiting.pop(uid, None) is not None

    def _plan(self, task: Task, own: Inspected) -> None:
        uid, wanted = task.uid, task.settings.dataset
        last_model = FileId(kind=Kind.GLOBALPARAM, task=uid, round=task.settings.num_rounds + 1)
        plan = make_plan(
            task=uid,
            number=task.number,
            settings=task.settings,
            hellos=self._platform.nodes.online(),
            not_heard=self._platform.nodes.not_heard(),
            server_dataset=next((dataset for dataset in own.datasets if dataset.name == wanted), None),
            server_problem=own.unusable.get(wanted),
            # Nobody knows here what the nodes' receivers are set to; what they take by default, each should.
            broadcast_bytes=room_for_meta(Limits().max_header_bytes, last_model),
            version=__version__,
        )
        match plan:
            case Waiting(reason):
                if reason != self._reasons.get(uid):
                    self._log.info("task_waits", task=task.number, reason=reason)
                    self._platform.store.tasks.set_progress(uid, Progress(0, "waiting", waiting_for=(reason,)))
                    self._reasons[uid] = reason
            case Impossible(reason):
                self._waits_no_more(uid)
                self._end_early(task, TaskState.FAILED, reason)
            case Plan():
                self._waits_no_more(uid)
                self._folder(uid).write_plan(plan)
                self._run(plan)

    def _end_early(self, task: Task, state: TaskState, reason: str) -> None:
        store = self._platform.store
        store.tasks.move(task.uid, state, reason=reason, now=time.time())
        clear_task(self._platform.spool, task.uid)
        store.events.add(Event(time.time(), state.value, reason, task=task.number))
        self._log.info("task_finished", task=task.number, outcome=state.value, reason=reason)
        self._platform.metrics.ended.labels(state.value).inc()

    def _run(self, plan: Plan) -> None:
        config = self._platform.config
        self._platform.store.tasks.set_nodes(plan.task, plan.nodes)
        workers = WorkerPool(
            (AGGREGATOR, EVALUATOR),
            self._fork_servers,
            self._workers_ready(plan.task),
            threads=config.threads_per_worker,
            max_restarts=config.max_worker_restarts,
            log={"task": plan.number},
            version=plan.version,
            on_death=self._platform.metrics.worker_restarts.inc,
        )
        try:
            running = RunningTask(plan, self._platform, workers)
        except Unavailable:
            workers.close()
            raise
        self.running[plan.task] = running
        running.start()

    def _workers_ready(self, uid: str) -> Callable[[], None]:
        def ready() -> None:
            if uid in self.running:
                self.running[uid].workers_ready()

        return ready
