"""The receiver daemon: `fedsim-receiver`."""

from __future__ import annotations

import select
import time
from typing import Final

from fedsim.config import ReceiverConfig
from fedsim.daemon import Daemon, daemon_main
from fedsim.errors import FedsimError
from fedsim.receiver.service import Receiver

_TURN_MILLISECONDS: Final = 2000
_SWEEP_SECONDS: Final = 3600.0


class ReceiverDaemon(Daemon[ReceiverConfig]):
    """Take files from the peers in receiver.yml, verify them, and put them into the spool."""

    name = "receiver"
    config_model = ReceiverConfig
    _receiver: Receiver | None = None
    _shown = ""
    _sweep_at = 0.0

    def setup(self) -> None:
        """Open spool and port."""
        self._receiver = Receiver(self.config)
        self._receiver.start()
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
        fixed = ("name", "role", "listen", "spool")
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
