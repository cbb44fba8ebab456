"""The receiver daemon: `fedsim-receiver`."""

from __future__ import annotations

import select
import time
from typing import Any, Final

from fedsim.config import ReceiverConfig
from fedsim.daemon import Daemon, daemon_main
from fedsim.errors import FedsimError
from fedsim.receiver.metrics import ReceiverMetrics
from fedsim.receiver.service import Pulse, Receiver

_TURN_MILLISECONDS: Final = 2000
_SWEEP_SECONDS: Final = 3600.0


class ReceiverDaemon(Daemon[ReceiverConfig]):
    """Take files from the peers in receiver.yml, verify them, and put them into the spool."""

    name = "receiver"
    config_model = ReceiverConfig
    metrics_model = ReceiverMetrics
    metrics: ReceiverMetrics
    _receiver: Receiver | None = None
    _shown = ""
    _sweep_at = 0.0

    def setup(self) -> None:
        """Open spool and port."""
        self._receiver = Receiver(self.config)
        self._receiver.start()
        self._pulse = Pulse(self._receiver.hub)
        self.metrics.watch(self._receiver.counts)
        self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        self.log.info("listening", address=self.config.listen.address, port=self._receiver.port)
        self._show(self._receiver)

    def run_once(self) -> None:
        """The hub's threads do the work; this loop watches over them."""
        poll = select.poll()
        poll.register(self.wake_fd, select.POLLIN)
        if poll.poll(_TURN_MILLISECONDS):
            self.drain_wake()
        receiver = self._receiver
        if receiver is None:
            return
        if receiver.hub.failure is not None:
            raise FedsimError(f"a thread of the receiver died: {receiver.hub.failure!r}")
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
            receiver.sweep()
        self._show(receiver)

    def reload(self, config: ReceiverConfig) -> None:
        """Peers, limits and certificates change at once; the rest with a restart."""
        fixed = ("name", "role", "listen", "spool", "metrics")
        changed = [key for key in fixed if getattr(config, key) != getattr(self.config, key)]
        if changed:
            self.log.warning("restart_needed", keys=", ".join(changed))
        config = config.model_copy(update={key: getattr(self.config, key) for key in fixed})
        if self._receiver is not None:
            self._receiver.reload(config)
        super().reload(config)

    def teardown(self) -> None:
        """Close every connection; senders will come again."""
        if self._receiver is not None:
            self._receiver.close()

    def feed_watchdog(self) -> None:
        """It is the threads that work: the watchdog hears of this turn only once one of them has answered."""
        if self._pulse.felt():
            super().feed_watchdog()

    @classmethod
    def log_fields(cls, config: ReceiverConfig) -> dict[str, Any]:
        """Who speaks, for whoever reads the journals of several hosts."""
        return {"node": config.name}

    def _show(self, receiver: Receiver) -> None:
        counts = receiver.counts()
        text = (
            f"{counts['connections_open']} connections; {counts.get('files_stored', 0)} files stored "
            f"({counts.get('bytes_stored', 0) / 1e6:.1f} MB), {counts.get('files_refused', 0)} refused"
        )
        if text != self._shown:
            self._shown = text
            self.status(text)


def main() -> None:
    """Entry point of `fedsim-receiver`."""
    daemon_main(ReceiverDaemon)
