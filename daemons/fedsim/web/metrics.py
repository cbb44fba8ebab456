"""The web's metrics at `/metrics`: number, status and duration of requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

import bottle
from prometheus_client import Counter, Histogram, make_wsgi_app

from fedsim.config import WebConfig
from fedsim.metrics import ProcessMetrics

PATH = "/metrics"
_SECONDS = (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 60)


class WebMetrics(ProcessMetrics):
    """The metrics of one worker process."""

    daemon = "web"

    def __init__(self) -> None:
        super().__init__()
        self.requests = Counter(
            "fedsim_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fedsim_http_request_seconds",
            "Time until the response was computed.",
            buckets=_SECONDS,
            registry=self.registry,
        )


class MeasuredApp:
    """WSGI middleware that measures requests, and serves `/metrics` to the networks in `metrics_to`."""

    def __init__(self, app: bottle.Bottle, config: WebConfig) -> None:
        self._app = app
        self._readers = config.metrics_to
        self._metrics = WebMetrics()
        self._serve_metrics = make_wsgi_app(self._metrics.registry)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle a request; for all other clients `/metrics` does not exist."""
        if environ.get("PATH_INFO") == PATH and self._may_read(environ):
            answer: Iterable[bytes] = self._serve_metrics(environ, start_response)
            return answer
        started = time.monotonic()
        status_code = "000"

        def record_status(status: str, *rest: Any) -> Any:
            nonlocal status_code
            status_code = status[:3]
            return start_response(status, *rest)

        pages: Iterable[bytes] = self._app(environ, record_status)
        self._metrics.seconds.observe(time.monotonic() - started)
        route = environ.get("bottle.route")
        # Unknown paths share one label, because clients can invent any number of them.
        method, path = (route.method, route.rule) if route is not None else ("", "")
        self._metrics.requests.labels(method, path, status_code).inc()
        return pages

    def _may_read(self, environ: dict[str, Any]) -> bool:
        """Whether the peer is in `metrics_to`; requests through a proxy are never allowed."""
        forwarded = any(name in environ for name in ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"))
        try:
            peer = ip_address(str(environ.get("REMOTE_ADDR", "")))
        except ValueError:
            return False
        return not forwarded and any(peer in network for network in self._readers)
