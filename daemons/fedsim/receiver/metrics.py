"""What a receiver tells: read from its counters when somebody asks, so that no transfer pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fedsim.metrics import ProcessMetrics

_COUNTED = {
    "connections": "Connections that came in.",
    "connections_refused": "Connections that were turned away.",
    "bytes_received": "Bytes that came in.",
    "files_stored": "Files that were verified and put into place.",
    "bytes_stored": "Bytes of those files.",
    "files_already_there": "Files that were offered again and not sent again.",
}
_REFUSED = "refused_"


class ReceiverMetrics(ProcessMetrics):
    """What every daemon tells, and the receiver's counters."""

    daemon = "receiver"

    def watch(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Tell what `counts` gives, which must be safe to call from any thread."""
        self.registry.register(_Counters(counts))


class _Counters(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """The counters as they are now."""
        counts = self._counts()
        for name, what in _COUNTED.items():
            yield CounterMetricFamily(f"fedsim_{name}", what, value=counts.get(name, 0))
        refused = CounterMetricFamily("fedsim_files_refused", "Files that were refused, by reason.", labels=["code"])
        for name, count in sorted(counts.items()):
            if name.startswith(_REFUSED):
                refused.add_metric([name.removeprefix(_REFUSED)], count)
        yield refused
        yield GaugeMetricFamily("fedsim_connections_open", "Connections now.", value=counts["connections_open"])
