"""The tasks that the server has claimed: they wait until nodes are found, run, and end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from fedsim import __version__
from fedsim.config import Limits
from fedsim.errors import BadInput, Unavailable
from fedsim.log import get_logger
from fedsim.messages import PluginInfo
from fedsim.plugins import provenance
from fedsim.runtime.bulkhead import bulkhead
from fedsim.server.context import ServerContext
from fedsim.server.task import ServerTask
from fedsim.server.task_dir import TaskDir
from fedsim.spool.clear import clear_task
from fedsim.spool.files import FileId, Kind
from fedsim.state_machines.candidates import Waiting
from fedsim.state_machines.plan import Impossible, Plan, make_plan
from fedsim.state_machines.policy import removed_nodes
from fedsim.store.records import Event, Progress, Task, TaskState
from fedsim.wire.protocol.frames import room_for_meta
from fedsim.worker.inspector import Inspected


class ClaimedTasks:
    """All tasks between claim and end. `own` are the server's data sets; no task starts before they are known."""

    def __init__(self, context: ServerContext) -> None:
        self.own: Inspected | None = None
        self.running: dict[str, ServerTask] = {}
        self.waiting: dict[str, Task] = {}
        self._reasons: dict[str, str] = {}
        self._claiming = False
        self._context = context
        self._log = get_logger()

    def __contains__(self, uid: str) -> bool:
        """Whether this task is between its claim and its end."""
        return uid in self.running or uid in self.waiting

    @property
    def status(self) -> str:
        """The status line for `systemctl status`."""
        if self.running:
            return "; ".join(running.status for running in self.running.values())
        waiting = (f"task {task.number}: {self._reasons.get(uid, '')}" for uid, task in self.waiting.items())
        return "; ".join(waiting) or "waiting for a task"

    def resume(self) -> None:
        """Continue the tasks that were claimed or running when the server stopped."""
        for task in self._context.store.tasks.unfinished():
            with bulkhead(partial(self._end_early, task, TaskState.FAILED)):
                self._resume(task)

    def _resume(self, task: Task) -> None:
        try:
            plan = self._folder(task.uid).read_plan()
        except BadInput as error:  # its model is no longer installed, or another version wrote it
            self._end_early(task, TaskState.FAILED, f"it cannot be resumed: {error}")
            return
        if plan is None:
            self.waiting[task.uid] = task
        elif (missing := removed_nodes(plan, self._context.nodes.addresses)) is not None:
            self._end_early(task, TaskState.FAILED, missing, plan.nodes)
        else:
            self._run(plan).resume()

    def quit(self) -> None:
        """End the workers of the tasks, which a restart resumes."""
        for running in self.running.values():
            running.quit()

    def suspend(self, error: Unavailable) -> None:
        """Suspend the running tasks; `resume` continues them."""
        for running in self.running.values():
            running.suspend(error)
        self.running.clear()
        self.waiting.clear()
        self._claiming = False
        self._reasons.clear()

    def wakes(self) -> list[float]:
        """When running tasks need a turn (time.monotonic); publishes their progress."""
        wakes = []
        for running in self.running.values():
            with bulkhead(running.give_up), bulkhead(running.fail):
                wakes += [at for at in (running.wake_at, running.publish_progress()) if at is not None]
        return wakes

    def tick(self) -> None:
        """Let running tasks act on the time that has passed."""
        now = time.monotonic()
        for running in self.running.values():
            if running.wake_at is not None and now >= running.wake_at:
                running.tick()

    def poll(self) -> None:
        """Read stop requests and pending tasks from the database."""
        for task in self._context.store.tasks.unfinished():
            if task.stop_requested:
                self._stop(task)
        for running in self.running.values():
            if (missing := removed_nodes(running.plan, self._context.nodes.addresses)) is not None:
                with bulkhead(running.give_up):
                    running.fail(missing)
        self.start_waiting()
        self._claim()

    def _claim(self) -> None:
        if self.own is not None and self._may_run_more and not self._claiming:
            self._claiming = True
            self._context.writer.submit(lambda: self._context.store.tasks.claim_next(time.time()), self._claimed)

    def _claimed(self, future: Future[Task | None]) -> None:
        self._claiming = False
        claimed = future.result()
        if claimed is None or self.own is None:
            return
        self._log.info("task_claimed", task=claimed.number, task_uid=claimed.uid)
        self.waiting[claimed.uid] = claimed
        self._plan(claimed, self.own)
        self._claim()  # a task that waits for its nodes does not block others

    def start_waiting(self) -> None:
        """Plan the claimed tasks, oldest first, as far as nodes and the limit allow."""
        if self.own is None:
            return
        for task in sorted(self.waiting.values(), key=lambda task: task.number):
            if not self._may_run_more:
                return
            self._plan(task, self.own)

    def reap(self) -> bool:
        """Remove the tasks that have ended; returns whether there were any, so that others can start."""
        ended = [uid for uid, running in self.running.items() if running.ended]
        for uid in ended:
            del self.running[uid]
        return bool(ended)

    @property
    def _may_run_more(self) -> bool:
        return len(self.running) < self._context.config.max_running_tasks

    def _folder(self, uid: str) -> TaskDir:
        return TaskDir(self._context.spool.folder(Kind.GLOBALPARAM), uid)

    def _stop(self, task: Task) -> None:
        running = self.running.get(task.uid)
        if running is not None:
            running.stop("stopped by a user")
        elif self._drop_waiting(task.uid):
            self._end_early(task, TaskState.STOPPED, "stopped by a user before it started")

    def _drop_waiting(self, uid: str) -> bool:
        self._reasons.pop(uid, None)
        return self.waiting.pop(uid, None) is not None

    def _plan(self, task: Task, own: Inspected) -> None:
        """Plan a claimed task, and start it if it can run now."""

        def fail(reason: str) -> None:
            self._drop_waiting(task.uid)
            self._end_early(task, TaskState.FAILED, reason)

        with bulkhead(fail):
            self._try_to_plan(task, own)

    def _try_to_plan(self, task: Task, own: Inspected) -> None:
        uid, wanted = task.uid, task.settings.dataset
        final_model = FileId.model_of(uid, task.settings.num_rounds)
        try:
            chosen = {
                setting: PluginInfo.of(name, provenance(group, name))
                for setting, (group, name) in task.settings.chosen_plugins.items()
            }
        except BadInput as error:
            self._drop_waiting(uid)
            self._end_early(task, TaskState.FAILED, str(error))
            return
        plan = make_plan(
            task=uid,
            number=task.number,
            settings=task.settings,
            hellos=self._context.nodes.online(),
            not_heard=self._context.nodes.not_heard(),
            server_dataset=next((dataset for dataset in own.datasets if dataset.name == wanted), None),
            server_problem=own.unusable.get(wanted),
            # The settings of the nodes' receivers are not known here; each should accept what the default allows.
            broadcast_bytes=room_for_meta(Limits().max_header_bytes, final_model),
            plugins=chosen,
            version=__version__,
        )
        match plan:
            case Waiting(reason):
                if reason != self._reasons.get(uid):
                    self._log.info("task_waits", task=task.number, reason=reason)
                    progress = Progress(0, "waiting", waiting_for=(reason,))
                    self._context.writer.submit(partial(self._context.store.tasks.set_progress, uid, progress))
                    self._reasons[uid] = reason
            case Impossible(reason):
                self._drop_waiting(uid)
                self._end_early(task, TaskState.FAILED, reason)
            case Plan():
                self._drop_waiting(uid)
                self._run(plan).start()

    def _end_early(self, task: Task, state: TaskState, reason: str, nodes: Sequence[str] = ()) -> None:
        """End a task that does not run; `nodes` may hold it and are sent a stop."""
        store, stops = self._context.store, self._context.stops
        promise = stops.promise(nodes, task.uid, reason)

        def end() -> None:
            promise()
            store.tasks.move(task.uid, state, reason=reason, now=time.time())
            clear_task(self._context.spool, task.uid)
            store.events.add(Event(time.time(), state.value, reason, task=task.number))

        def ended(future: Future[None]) -> None:
            future.result()
            stops.send(nodes, task.uid, reason)
            self._log.info("task_finished", task=task.number, outcome=state.value, reason=reason)
            self._context.metrics.ended.labels(state.value).inc()

        self._context.writer.submit(end, ended)

    def _run(self, plan: Plan) -> ServerTask:
        running = self.running[plan.task] = ServerTask(plan, self._context)
        return running
