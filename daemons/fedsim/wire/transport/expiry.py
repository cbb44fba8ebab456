"""A certificate that ends soon is told of while there is time: at the start, after a reload, and once a day."""

from __future__ import annotations

import time
from typing import Final

import structlog

from fedsim.wire.tls import Credentials

WARNING_DAYS: Final = 14
_DAY_SECONDS: Final = 86_400.0


class ExpiryWatch:
    """An actor of the hub. Whoever replaces `credentials` wakes it."""

    def __init__(self, credentials: Credentials | None) -> None:
        self.credentials = credentials
        self.deadline: float | None = None
        self._log = structlog.get_logger()

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return -1, 0

    def handle(self, _: int) -> bool:
        """Warn if it is time to."""
        self.deadline = time.monotonic() + _DAY_SECONDS
        if self.credentials is not None:
            days = (self.credentials.not_after - time.time()) / _DAY_SECONDS
            if days < WARNING_DAYS:
                told = f"expires in {days:.0f} days" if days > 0 else "has expired: nobody believes this host any more"
                problem = f"{self.credentials.path} {told}; renew it and reload this daemon"
                self._log.warning("certificate_expires", problem=problem)
        return False
