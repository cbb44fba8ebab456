"""The receiver daemon: `fedsim-receiver`."""

from __future__ import annotations

import resource
import select
import time
from typing import Any, Final

from fedsim.config import ReceiverConfig
from fedsim.errors import FedsimError
from fedsim.receiver.metrics import ReceiverMetrics
from fedsim.receiver.pulse import Pulse
from fedsim.receiver.service import Receiver
from fedsim.runtime.daemon import Daemon, daemon_main

_TURN_MILLISECONDS: Final = 2000
_SWEEP_SECONDS: Final = 3600.0


class ReceiverDaemon(Daemon[ReceiverConfig]):
    """Receive files from the peers in receiver.yml, verify them, and put them into the spool."""

    name = "receiver"
    config_model = ReceiverConfig
    metrics_model = ReceiverMetrics
    metrics: ReceiverMetrics
    fixed_keys = ("name", "role", "listen", "spool", "metrics")

    def setup(self) -> None:
        """Open spool and port."""
        _allow_descriptors()
        self._receiver = Receiver(self.config)
        self.resources.callback(self._receiver.close)
        self._receiver.start()
        self._pulse = Pulse(self._receiver.reactor)
        self.metrics.watch(self._receiver.counts)
        self._publish_certificate()
        self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        self.log.info("listening", address=self.config.listen.address, port=self._receiver.port)
        self._publish_counts()

    def run_once(self) -> None:
        """Watch over the reactor's threads, which do the work."""
        poll = select.poll()
        poll.register(self.wake_fd, select.POLLIN)
        if poll.poll(_TURN_MILLISECONDS):
            self.drain_wake()
        if self._receiver.reactor.failure is not None:
            raise FedsimError(f"a thread of the receiver died: {self._receiver.reactor.failure!r}")
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
            self._receiver.inbox.sweep()
        self._publish_counts()

    def reload(self, config: ReceiverConfig) -> None:
        """Peers, limits and certificates change at once; the rest with a restart."""
        self._receiver.reload(config)
        self._publish_certificate()
        super().reload(config)

    def feed_watchdog(self) -> None:
        """Feed the watchdog only once a thread of the reactor has answered since the last turn."""
        if self._pulse.beats():
            super().feed_watchdog()

    @classmethod
    def log_fields(cls, config: ReceiverConfig) -> dict[str, Any]:
        """The host's name, for those who read the journals of several hosts."""
        return {"node": config.name}

    def _publish_certificate(self) -> None:
        credentials = self._receiver.credentials
        self.metrics.certificate(credentials.not_after if credentials else None)

    def _publish_counts(self) -> None:
        counts = self._receiver.counts()
        self.publish_status(
            f"{counts['connections_open']} connections; {counts.get('files_stored', 0)} files stored "
            f"({counts.get('bytes_stored', 0) / 1e6:.1f} MB), {counts.get('files_refused', 0)} refused"
        )


def _allow_descriptors() -> None:
    """Raise the number of descriptors that this process may open to what the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """Entry point of `fedsim-receiver`."""
    return daemon_main(ReceiverDaemon)
