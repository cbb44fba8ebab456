"""Measures the speed of this node when the server asks, one kind of training after another, in a worker of its own."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Final

from fedsim import __version__, plugins
from fedsim.client.context import NodeContext
from fedsim.client.speed_table import FILE, MeasuredOn, SpeedTable
from fedsim.config import ClientConfig
from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.memory import installed_memory, usable_processors
from fedsim.messages import SpeedInfo, read_message
from fedsim.runtime.event_loop import EventLoop
from fedsim.speed import USUAL_CHUNK_CLIENTS, SpeedRequest
from fedsim.spool.clear import clear_file
from fedsim.spool.files import Kind
from fedsim.spool.layout import read_present
from fedsim.state_machines.own_engines import offered_engines
from fedsim.worker.inspector import Inspected
from fedsim.worker.jobs import JobFailed, MeasureSpeed, SpeedMeasured
from fedsim.worker.process import WorkerProcess

BUDGET_SECONDS: Final = 1.0
"""No further pass begins after this time."""
MOST_SECONDS: Final = 120.0
"""Then the measurement is given up. The server waits longer."""


def measured_on(config: ClientConfig, seen: Inspected) -> MeasuredOn:
    """What measurements on this host depend on, as it is now."""
    return MeasuredOn(
        version=__version__,
        torch=seen.torch,
        processor=seen.processor,
        processors=usable_processors(),
        engine=config.engine,
        engine_options=config.engine_options,
        threads=config.threads_per_worker,
        workers=config.workers,
    )


class SpeedMeter:
    """Answers requests by what is in the table, or by a measurement. `start` when the host is known."""

    def __init__(self, context: NodeContext, loop: EventLoop) -> None:
        self._context = context
        self._table: SpeedTable | None = None
        self._waiting: deque[SpeedRequest] = deque()
        self._current: SpeedRequest | None = None
        self._process: WorkerProcess | None = None
        self._given_up: dict[str, SpeedInfo] = {}
        self._timer = loop.timer(lambda: self._give_up(f"took more than {MOST_SECONDS:g} s"))
        self._log = get_logger()

    def start(self, seen: Inspected) -> None:
        """Use what was measured on this host, and answer the requests that have arrived."""
        config = self._context.config
        host = measured_on(config, seen)
        if self._table is None or self._table.host != host:
            self._table = SpeedTable(config.spool / FILE, host)
        self.scan()

    @property
    def speeds(self) -> tuple[SpeedInfo, ...]:
        """What the node announces."""
        if self._table is None or not self._context.config.measures:
            return ()
        return (*self._table.speeds, *self._given_up.values())

    def scan(self) -> None:
        """Take up the requests that have arrived; one that is lost comes again."""
        if self._table is None:
            return
        for item, content in read_present(self._context.spool.arrived(Kind.MEASURE)):
            clear_file(item.path)
            try:
                request = read_message(SpeedRequest, content, "the server's question about the speed")
            except BadInput as error:
                self._log.warning("measure_not_understood", problem=str(error))
                continue
            current = [] if self._current is None else [self._current]
            if request.key not in {known.key for known in (*self._waiting, *current)}:
                self._waiting.append(request)
        self._next()

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.close()
            self._process = None

    # ------------------------------------------------------------ one measurement

    def _next(self) -> None:
        while self._waiting and self._current is None:
            request, config = self._waiting.popleft(), self._context.config
            if not config.measures or request.key in {speed.key for speed in self.speeds}:
                self._context.announce()
                continue
            self._current = request
            if (problem := _forbidden(request, config)) is not None:
                self._give_up(problem)
            else:
                self._measure(request, config)

    def _measure(self, request: SpeedRequest, config: ClientConfig) -> None:
        self._process = WorkerProcess(
            self._context.fork_servers,
            self._worker_ready,
            threads=config.idle_threads,
            learns=True,
            log={"node": config.name},
        )
        rules = config.institution
        self._process.submit(
            MeasureSpeed(
                request=request,
                engines=offered_engines(config),
                engine_options=config.engine_options,
                threads=config.threads_per_worker if isinstance(config.threads_per_worker, int) else None,
                workers=config.fixed_workers,
                max_parameters=rules.max_parameters,
                memory_bytes=min(installed_memory(), rules.max_memory_bytes or installed_memory()),
                budget_seconds=BUDGET_SECONDS,
            )
        )
        self._timer.start(MOST_SECONDS)

    def _worker_ready(self) -> None:
        if self._process is None:
            return
        replies, ended = self._process.replies()
        for reply in replies:
            match reply:
                case SpeedMeasured(speed=speed, seconds=seconds):
                    self._measured(speed, seconds)
                    return
                case JobFailed(reason=reason):
                    self._give_up(reason)
                    return
        if ended is not None:
            self._give_up(f"the worker {ended}")

    def _measured(self, speed: SpeedInfo, seconds: float) -> None:
        self.close()
        self._timer.cancel()
        table, request = self._table, self._current
        if table is None or request is None:
            return
        self._log.info("speed_measured", seconds=round(seconds, 3), model=request.model_spec.name, **speed.model_dump())

        def stored(future: Future[None]) -> None:
            self._current = None
            future.result()
            self._answered()

        self._context.writer.submit(lambda: table.add(speed, request), stored)

    def _answered(self) -> None:
        self._current = None
        self._context.announce()
        self._next()

    def _give_up(self, problem: str) -> None:
        """Announce what the configuration says without a measurement, until this daemon is restarted."""
        self.close()
        self._timer.cancel()
        request, config = self._current, self._context.config
        if request is None:
            return
        self._log.warning("speed_not_measured", model=request.model_spec.name, problem=problem)
        self._given_up[request.key] = SpeedInfo(
            key=request.key,
            engine=offered_engines(config)[0],
            threads=config.idle_threads,
            workers=config.fixed_workers or 1,
            chunk_clients=USUAL_CHUNK_CLIENTS,
        )
        self._answered()


def _forbidden(request: SpeedRequest, config: ClientConfig) -> str | None:
    """Why the institution does not let this be measured: the task will be refused as well."""
    for setting, name in (
        (plugins.MODELS, request.model_spec.name),
        (plugins.OBJECTIVES, request.objective),
        (plugins.OPTIMIZERS, request.optimizer),
        (plugins.STRATEGIES, request.strategy),
    ):
        allowed = config.institution.allows(setting)
        if allowed is not None and name not in allowed:
            return f"this institution does not allow the {plugins.kind_of(setting)} {name}"
    return None
