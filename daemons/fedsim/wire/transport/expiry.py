"""Warns of a certificate that expires soon: at the start, after a reload, and once a day."""

from __future__ import annotations

import time
from typing import Final

import structlog

from fedsim.durations import DAY_SECONDS
from fedsim.wire.tls import Credentials

WARNING_DAYS: Final = 14


class ExpiryWatch:
    """An actor of the reactor, to be woken when `credentials` is replaced."""

    def __init__(self, credentials: Credentials | None) -> None:
        self.credentials = credentials
        self.deadline: float | None = None
        self._log = structlog.get_logger()

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return -1, 0

    def handle(self, _: int) -> bool:
        """Warn if the certificate expires soon."""
        self.deadline = time.monotonic() + DAY_SECONDS
        if self.credentials is not None:
            days = (self.credentials.not_after - time.time()) / DAY_SECONDS
            if days < WARNING_DAYS:
                state = f"expires in {days:.0f} days" if days > 0 else "has expired: no host accepts it any more"
                problem = f"{self.credentials.path} {state}; renew it and reload this daemon"
                self._log.warning("certificate_expires", problem=problem)
        return False
