"""Metrics for Prometheus. The main loop updates them; a separate thread serves them without involving the loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from math import nan
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_wsgi_app

from fedsim import __version__
from fedsim.config import Address
from fedsim.errors import Unavailable
from fedsim.log import dropped_lines

SCRAPE_SECONDS = 10.0
# How long shutdown waits for the serving thread.
_POLL_SECONDS = 0.5
_TURNS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200)


class ProcessMetrics:
    """The metrics of every daemon, in a registry of its own, to which a daemon adds its counters."""

    daemon: str

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge("fedsim_build_info", "Always 1.", ["daemon", "version"], registry=self.registry)
        build.labels(self.daemon, __version__).set(1)
        dropped = Gauge(
            "fedsim_log_lines_dropped", "Lines of the log that could not be written.", registry=self.registry
        )
        dropped.set_function(dropped_lines)
        self.turn = Histogram(
            "fedsim_loop_turn_seconds",
            "Time between two notifications of the watchdog, including waits for events (at most 5 s unless delayed).",
            buckets=_TURNS,
            registry=self.registry,
        )
        self._certificate = Gauge(
            "fedsim_certificate_expires_timestamp_seconds",
            "When this host's certificate expires; NaN without TLS.",
            registry=self.registry,
        )
        self.certificate(None)

    def certificate(self, not_after: float | None) -> None:
        """Publish when the certificate in use expires, in seconds since the epoch; None without TLS."""
        self._certificate.set(nan if not_after is None else not_after)


class TaskMetrics(ProcessMetrics):
    """The metrics of tasks on server and node. A task is a label only while it runs, which bounds their number."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.tasks = Gauge("fedsim_tasks", "Tasks that are running or waiting.", ["state"], registry=registry)
        self.task_round = Gauge("fedsim_task_round", "The round that a task is in.", ["task"], registry=registry)
        self.rounds = Counter("fedsim_rounds", "Rounds: committed on a server, trained on a node.", registry=registry)
        self.bytes_sent = Counter("fedsim_bytes_sent", "Bytes sent, by kind of file.", ["kind"], registry=registry)
        self.worker_restarts = Counter("fedsim_worker_restarts", "Workers that died.", registry=registry)

    def task_ended(self, number: int) -> None:
        """Remove a task's metrics."""
        _remove(self.task_round, number)


def _remove(gauge: Gauge, task: int) -> None:
    with suppress(KeyError):
        gauge.remove(str(task))


class ServerMetrics(TaskMetrics):
    """The server's metrics."""

    daemon = "server"

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.ended = Counter("fedsim_tasks_ended", "Tasks that ended.", ["outcome"], registry=registry)
        self.round_seconds = Histogram(
            "fedsim_round_seconds",
            "Duration of a round's parts: train, aggregate, evaluate, all.",
            ["phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tested = Gauge(
            "fedsim_task_metric",
            "The task's metrics at the last test; NaN if not finite.",
            ["task", "metric"],
            registry=registry,
        )
        self._tested_names: dict[str, set[str]] = {}
        self.checkpoints = Counter("fedsim_checkpoints", "Checkpoints that were saved.", registry=registry)
        self.node_online = Gauge("fedsim_node_online", "1 if the node is online.", ["node"], registry=registry)
        self.node_certificate = Gauge(
            "fedsim_node_certificate_expires_timestamp_seconds",
            "When the certificate of a node that is online expires; NaN without TLS.",
            ["node"],
            registry=registry,
        )
        self.waiting = Gauge(
            "fedsim_waiting", "1 while tasks wait for it: database, disk_space.", ["for"], registry=registry
        )
        for what in ("database", "disk_space"):
            self.waiting.labels(what).set(0)
        self._nodes: set[str] = set()

    def nodes(self, configured: Collection[str], online: Mapping[str, float | None]) -> None:
        """Publish which of the nodes in server.yml are online, and when their certificates expire."""
        for name in self._nodes - set(configured):
            self.node_online.remove(name)
            self.node_certificate.remove(name)
        self._nodes = set(configured)
        for name in configured:
            self.node_online.labels(name).set(name in online)
            expires = online.get(name)
            self.node_certificate.labels(name).set(nan if expires is None else expires)

    def task_ended(self, number: int) -> None:
        """Remove a task's metrics."""
        super().task_ended(number)
        for name in self._tested_names.pop(str(number), set()):
            self._tested.remove(str(number), name)

    def tested(self, task: str, name: str, value: float) -> None:
        """Set a metric of the task's last test."""
        self._tested_names.setdefault(task, set()).add(name)
        self._tested.labels(task, name).set(value)


class NodeMetrics(TaskMetrics):
    """A node's metrics."""

    daemon = "client"

    def __init__(self) -> None:
        super().__init__()
        self.chunk_seconds = Histogram(
            "fedsim_chunk_seconds", "Time to train a chunk.", buckets=_SECONDS, registry=self.registry
        )
        self.problems = Gauge("fedsim_dataset_problems", "Data sets that cannot be used.", registry=self.registry)
        self.full = Gauge("fedsim_waiting", "1 while tasks wait for it: disk_space.", ["for"], registry=self.registry)
        self.full.labels("disk_space").set(0)


class _Handler(WSGIRequestHandler):
    timeout = SCRAPE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Do not log scrapes."""


class _Server(ThreadingMixIn, WSGIServer):
    """Serves in daemon threads: a slow scraper does not delay anything, not even shutdown."""

    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Bind without resolving this host's name, which could take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Do not log disconnected scrapers."""


class MetricsEndpoint:
    """Serves `http://ADDRESS:PORT/metrics` from its creation until `close`."""

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        """Bind, and start to serve.

        Raises:
            Unavailable: the address cannot be bound.
        """
        try:
            family, _, _, _, where = socket.getaddrinfo(
                address.address, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            server_class = type("_Server", (_Server,), {"address_family": family})
            self._server: WSGIServer = server_class((str(where[0]), int(where[1])), _Handler)
        except OSError as error:
            raise Unavailable(
                f"metrics cannot be served on {address}: {error.strerror or error}; change `metrics:`"
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
