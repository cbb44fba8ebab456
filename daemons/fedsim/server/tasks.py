"""The tasks that the server has claimed: they wait until nodes are found, run, and end."""

from __future__ import annotations

import time
from concurrent.futures import Future
from functools import partial

from fedsim.errors import BadInput, Unavailable
from fedsim.runtime.bulkhead import bulkhead
from fedsim.server.context import ServerContext
from fedsim.server.task import ServerTask
from fedsim.server.waiting_tasks import WaitingTasks
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import removed_nodes
from fedsim.state_machines.task_events import Postpone
from fedsim.store.records import Event, Task, TaskState


class ClaimedTasks(WaitingTasks):
    """All tasks between claim and end. `own` are the server's data sets; no task starts before they are known."""

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self.running: dict[str, ServerTask] = {}
        self._claiming = False
        self._resuming: set[str] = set()

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
        """Continue a task from its folder; one that has none waits for its nodes."""
        try:
            plan = self._folder(task.uid).read_plan()
            asked = self.approvals.restore(task.uid)
        except BadInput as error:  # its model is no longer installed, or another version wrote it
            self._end_early(task, TaskState.FAILED, f"it cannot be resumed: {error}")
            return
        if plan is None or asked:
            self.waiting[task.uid] = task
            return
        self._drop_waiting(task.uid)
        if (missing := removed_nodes(plan, self._context.nodes.addresses)) is not None:
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
        self._clear_waiting()
        self._claiming = False
        self._resuming.clear()

    def wakes(self) -> list[float]:
        """When running tasks need a turn (time.monotonic); publishes their progress."""
        wakes = []
        for running in [running for running in self.running.values() if not running.interrupted]:
            with bulkhead(running.give_up), bulkhead(running.fail, running.unexpected):
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
            most = self._context.config.max_running_tasks_per_user
            self._context.writer.submit(lambda: self._context.store.tasks.claim_next(time.time(), most), self._claimed)

    def _claimed(self, future: Future[Task | None]) -> None:
        self._claiming = False
        claimed = future.result()
        if claimed is None or self.own is None:
            return
        self._log.info("task_claimed", task=claimed.number, task_uid=claimed.uid)
        self.waiting[claimed.uid] = claimed
        self._plan(claimed, self.own)
        self._claim()  # a task that waits for its nodes does not block others

    def reap(self) -> bool:
        """Remove the tasks that have ended; returns whether there were any, so that others can start."""
        ended = [uid for uid, running in self.running.items() if running.ended]
        for uid in ended:
            running = self.running.pop(uid)
            self._context.restarts.forget(uid)
            if isinstance(running.outcome, Postpone):
                self._postpone(running.plan, dict(running.outcome.nodes))
                continue
            self._late.pop(running.plan.number, None)
            if not running.abandoned:
                self._context.writer.submit(running.clear)  # from now on its files are late, and cleared as they arrive
        return bool(ended)

    def resume_interrupted(self) -> None:
        """Resume from disk the tasks that an unexpected exception interrupted, after what they still write."""
        for uid, running in self.running.items():
            if running.interrupted and uid not in self._resuming:
                self._resuming.add(uid)
                self._context.writer.submit(partial(self._read_interrupted, running), self._read_again)

    def _read_interrupted(self, running: ServerTask) -> Task | None:
        store = self._context.store
        text = f"{running.interrupted}; the task is resumed from what is stored"
        store.events.add(Event(time.time(), "internal_error", text, task=running.plan.number))
        return store.tasks.by_uid(running.uid)

    def _read_again(self, future: Future[Task | None]) -> None:
        task = future.result()
        if task is None or (interrupted := self.running.get(task.uid)) is None:  # suspended since
            return
        self._resuming.discard(task.uid)
        if interrupted.interrupted:
            del self.running[task.uid]
            with bulkhead(partial(self._end_early, task, TaskState.FAILED)):
                self._resume(task)

    @property
    def _may_run_more(self) -> bool:
        return len(self.running) < self._context.config.max_running_tasks

    def _stop(self, task: Task) -> None:
        running = self.running.get(task.uid)
        if running is not None:
            running.stop("stopped by a user")
        elif task.uid in self.waiting:
            self._end_waiting(task, TaskState.STOPPED, "stopped by a user before it started")

    def _run(self, plan: Plan) -> ServerTask:
        running = self.running[plan.task] = ServerTask(plan, self._context)
        return running
