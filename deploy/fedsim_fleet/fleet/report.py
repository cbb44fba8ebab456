"""What hosts tell of themselves: asked by one script on each, and taken for no more than a stranger's word."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from importlib import resources
from typing import Annotated, Any

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedsim.cli.output import plain
from fedsim.errors import Unavailable
from fedsim_fleet.fleet.inventory import DATA, Host
from fedsim_fleet.fleet.ssh import Connection

BUILT_IN = ("digits",)  # formats whose data comes with fedsim and is no file
_Text = Annotated[str, StringConstraints(max_length=65536)]
_Line = Annotated[str, StringConstraints(max_length=4000)]
_WITHIN = 60.0


class _Told(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Room(_Told):
    """Bytes."""

    free: int
    all: int


class Unit(_Told):
    """A unit as systemd sees it; `lines` are the last of its journal, if it is not active."""

    name: _Line
    loaded: bool
    state: _Line
    sub: _Line
    enabled: _Line
    status: _Line
    restarts: int
    lines: tuple[_Line, ...] = ()


class CertificateFile(_Told):
    """A certificate on the host; `problem`: why key and certificate do not go together."""

    path: _Line
    pem: _Text
    problem: _Line

    def read(self) -> x509.Certificate:
        """The certificate; `ValueError` if it is none."""
        return x509.load_pem_x509_certificate(self.pem.encode())


def days_of(certificate: x509.Certificate, now: float) -> float:
    """How long it is still valid, in days; `now` in seconds since the epoch."""
    return (certificate.not_valid_after_utc - datetime.fromtimestamp(now, UTC)).total_seconds() / 86400


class Checked(_Told):
    """A YAML file, and what its daemon says of it."""

    path: _Line
    valid: bool
    says: _Line


class Way(_Told):
    """A peer that must be reached from this host."""

    address: _Line
    port: int
    problem: _Line


class Kept(_Told):
    """A data set's file or folder."""

    path: _Line
    problem: _Line


class Watches(_Told):
    """The kernel's limits for inotify."""

    instances: int
    watches: int


class Deep(_Told):
    """What is asked for a diagnosis only. `failed`: units of fedsim, also instances; `unwritable`: folders."""

    failed: tuple[_Line, ...]
    unwritable: tuple[_Line, ...]
    configurations: tuple[Checked, ...]
    ways: tuple[Way, ...]
    datasets: tuple[Kept, ...]
    pages: _Line
    killed: tuple[_Line, ...]
    synchronised: _Line
    watches: Watches


class HostReport(_Told):
    """A host at one moment. `skew`: how far its clock is before the control machine's at least, in seconds."""

    clock: float
    took: float
    version: _Line
    units: tuple[Unit, ...]
    disk: Room
    memory: Room
    gpus: tuple[_Line, ...]
    certificates: tuple[CertificateFile, ...]
    revoked: _Line
    metrics: dict[str, dict[str, float]]
    deep: Deep | None
    skew: float = Field(0.0, exclude=True)

    def days_left(self, now: float) -> float | None:
        """Until the first of its certificates ends; None if it has none that can be read."""
        ends = []
        for file in self.certificates:
            try:
                ends.append(days_of(file.read(), now))
            except ValueError:
                continue
        return None if not ends else min(ends)

    @property
    def doing(self) -> str:
        """What the daemon that knows of tasks says: the server's on its host, else the client's."""
        for part in ("fedsim-server", "fedsim-client"):
            for unit in self.units:
                if unit.name.startswith(part) and unit.status:
                    return plain(unit.status)
        return ""


def script(name: str) -> str:
    """A program that runs on hosts."""
    return resources.files("fedsim_fleet.on_host").joinpath(name).read_text(encoding="utf-8")


def data_paths(host: Host) -> dict[str, str]:
    """Where a node's data sets lie, by name."""
    return {data.name: str(DATA / data.path) for data in host.datasets if data.format not in BUILT_IN}


def ask(connection: Connection, connect: list[tuple[str, int]] | None = None) -> HostReport:
    """A host's report.

    Args:
        connection: to the host.
        connect: peers that it must reach, as addresses and ports; None: only what is quick.

    Raises:
        Unavailable: the host has no Python 3, or what it says is not understood.
    """
    host = connection.host
    asked: dict[str, Any] = {
        "units": [*host.units, *(["mariadb", "nginx"] if host.is_server else [])],
        "deep": connect is not None,
        "connect": connect or [],
        "datasets": [] if host.is_server else list(data_paths(host).values()),
        "metrics": {name: port for name, port in host.metrics_port.items() if (name == "server") == host.is_server},
    }
    began = time.time()
    answer = connection.run(["python3", "-", json.dumps(asked)], text=script("report.py"), within=_WITHIN)
    ended = time.time()
    try:
        report = HostReport.model_validate_json(answer.text())
    except ValidationError as error:
        raise Unavailable(f"what it tells of itself is not understood: {error.error_count()} problems") from error
    # The clock was read between these two moments; how much of the way lies before it, nobody knows.
    latest = ended - report.took
    skew = min(report.clock - began, 0) + max(report.clock - latest, 0)
    return report.model_copy(update={"skew": skew})
