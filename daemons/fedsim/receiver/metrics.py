"""The receiver's metrics, read from its counters at each scrape, so that they cost nothing per transfer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fedsim.metrics import ProcessMetrics

_COUNTED = {
    "connections": "Incoming connections.",
    "connections_refused": "Connections that were refused.",
    "bytes_received": "Bytes received.",
    "files_stored": "Files that were received, verified and stored.",
    "bytes_stored": "Bytes of those files.",
    "files_sent": "Files that were sent over connections that peers opened.",
    "models_passed_on": "Global models that were passed on to another node.",
    "files_already_there": "Files that were offered but stored already.",
}
_REFUSED = "refused_"


class ReceiverMetrics(ProcessMetrics):
    """The metrics of every daemon, and the receiver's counters."""

    daemon = "receiver"

    def watch(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Export what `counts` returns, which must be safe to call from any thread."""
        self.registry.register(_Counters(counts))


class _Counters(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """The current counters."""
        counts = self._counts()
        for name, what in _COUNTED.items():
            yield CounterMetricFamily(f"fedsim_{name}", what, value=counts.get(name, 0))
        refused = CounterMetricFamily("fedsim_files_refused", "Files that were refused, by reason.", labels=["code"])
        for name, count in sorted(counts.items()):
            if name.startswith(_REFUSED):
                refused.add_metric([name.removeprefix(_REFUSED)], count)
        yield refused
        yield GaugeMetricFamily("fedsim_connections_open", "Open connections.", value=counts["connections_open"])
