"""What tests of TLS share: a lab's authority with the files of its hosts, and a log that can be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from transfer_support import PATIENCE

from fedsim.config import TlsConfig
from fedsim.spool.files import Role
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials
from fedsim_fleet.authority import Authority, Issued
from fedsim_fleet.request import request_for

Clock = Callable[[], datetime]


def now() -> datetime:
    return datetime.now(UTC)


def passphrase() -> bytes:
    return b"a passphrase for tests"


def replace(path: Path, content: bytes) -> None:
    """As a tool that deploys does it: a daemon reads the old or the new file, never a part."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    temporary.rename(path)


class Pki:
    """The authority of a lab, and a folder of files for each host; `hosts` where those are another authority's, too."""

    def __init__(self, folder: Path, name: str = "test lab", *, hosts: Path | None = None) -> None:
        self.hosts = hosts or folder
        self.authority = Authority.make(folder / "ca", passphrase, name=name)

    def issue(self, name: str, role: Role, *, clock: Clock = now, days: int = 30) -> Issued:
        """Give the host a new key and certificate in place of those that it had."""
        here = self.hosts / name
        here.mkdir(exist_ok=True)
        request, _ = request_for(here / "new.key", name)
        issued = Authority(self.authority.folder, passphrase, clock=clock).sign(request, name, role, days=days)
        replace(here / "host.crt", issued.certificate.encode())
        (here / "new.key").rename(here / "host.key")
        return issued

    def tls(self, name: str, role: Role, **how: Any) -> TlsConfig:
        """The `tls:` of a host, with everything that it names."""
        here = self.hosts / name
        if how or not (here / "host.crt").exists():
            self.issue(name, role, **how)
        if not (here / "ca.crt").exists():
            self.publish(name)
        return TlsConfig(
            certificate=here / "host.crt", key=here / "host.key", authority=here / "ca.crt", revoked=here / "crl.pem"
        )

    def publish(self, *names: str, others: tuple[Pki, ...] = ()) -> None:
        """Bring authority and list to hosts; with others, those that are believed as well."""
        parts = (self, *others)
        for name in names:
            for file in ("ca.crt", "crl.pem"):
                content = b"".join((part.authority.folder / file).read_bytes() for part in parts)
                replace(self.hosts / name / file, content)

    def credentials(self, name: str, role: Role, **how: Any) -> Credentials:
        return Credentials(self.tls(name, role, **how), Identity(name, role))


def ends_in(seconds: float) -> Clock:
    """A clock with which a certificate of one day expires this many seconds from now."""
    return lambda: now() - timedelta(days=1) + timedelta(seconds=seconds)


class Log:
    """Every event of this process, to be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[dict[str, Any]] = []

    def __call__(self, _: Any, level: str, event: MutableMapping[str, Any]) -> Any:
        with self._changed:
            self.events.append({**event, "level": level})
            self._changed.notify_all()
        raise structlog.DropEvent

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["event"] == name]

    def wait(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        with self._changed:
            there = self._changed.wait_for(lambda: len(self.named(name)) >= count, PATIENCE)
            assert there, f"no {name} among {self.events}"
        return self.named(name)


@contextmanager
def logged() -> Iterator[Log]:
    """Catch what is logged in the block."""
    before = structlog.get_config()
    log = Log()
    structlog.configure(processors=[log])
    try:
        yield log
    finally:
        structlog.configure(**before)
