"""`/metrics` of the web, and what it tells: how many requests were answered, how, and how quickly."""

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
    """The numbers of one process that serves."""

    daemon = "web"

    def __init__(self) -> None:
        super().__init__()
        self.requests = Counter(
            "fedsim_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fedsim_http_request_seconds", "How long an answer took.", buckets=_SECONDS, registry=self.registry
        )


class MeasuredApp:
    """The application, with its requests counted, and `/metrics` for those that `metrics_to` names."""

    def __init__(self, app: bottle.Bottle, config: WebConfig) -> None:
        self._app = app
        self._readers = config.metrics_to
        self._metrics = WebMetrics()
        self._tell = make_wsgi_app(self._metrics.registry)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI. To everybody else `/metrics` is a page that does not exist."""
        if environ.get("PATH_INFO") == PATH and self._may_read(environ):
            answer: Iterable[bytes] = self._tell(environ, start_response)
            return answer
        started = time.monotonic()
        told = "000"

        def listening(status: str, *rest: Any) -> Any:
            nonlocal told
            told = status[:3]
            return start_response(status, *rest)

        pages: Iterable[bytes] = self._app(environ, listening)
        self._metrics.seconds.observe(time.monotonic() - started)
        route = environ.get("bottle.route")
        # What no route answers has no label of its own: anybody can think of more paths.
        method, path = (route.method, route.rule) if route is not None else ("", "")
        self._metrics.requests.labels(method, path, told).inc()
        return pages

    def _may_read(self, environ: dict[str, Any]) -> bool:
        """Only the peer itself counts: what came through a proxy comes from anywhere."""
        forwarded = any(name in environ for name in ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"))
        try:
            peer = ip_address(str(environ.get("REMOTE_ADDR", "")))
        except ValueError:
            return False
        return not forwarded and any(peer in network for network in self._readers)
