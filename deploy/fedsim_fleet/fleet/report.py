"""Reports of hosts: produced by a script on each host, and validated as untrusted input."""

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

BUILT_IN = ("digits",)  # formats whose data is part of fedsim, not a file
_Text = Annotated[str, StringConstraints(max_length=65536)]
_Line = Annotated[str, StringConstraints(max_length=4000)]
_WITHIN = 60.0


class _ReportPart(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Capacity(_ReportPart):
    """Free and total capacity in bytes."""

    free: int
    all: int


class Unit(_ReportPart):
    """The state of a unit according to systemd; `lines`: the end of its journal if it is not active."""

    name: _Line
    loaded: bool
    state: _Line
    sub: _Line
    enabled: _Line
    status: _Line
    restarts: int
    lines: tuple[_Line, ...] = ()


class CertificateFile(_ReportPart):
    """A certificate on the host; `problem`: why it does not match its key."""

    path: _Line
    pem: _Text
    problem: _Line

    def read(self) -> x509.Certificate:
        """Parse the certificate; `ValueError` if it is invalid."""
        return x509.load_pem_x509_certificate(self.pem.encode())


def days_of(certificate: x509.Certificate, now: float) -> float:
    """Days until it expires; `now` in seconds since the epoch."""
    return (certificate.not_valid_after_utc - datetime.fromtimestamp(now, UTC)).total_seconds() / 86400


class ConfigurationCheck(_ReportPart):
    """The result of `--validate-config` for a YAML file."""

    path: _Line
    valid: bool
    output: _Line


class ConnectionCheck(_ReportPart):
    """Whether the host can connect to a peer; `problem` is empty if it can."""

    address: _Line
    port: int
    problem: _Line


class DataSetCheck(_ReportPart):
    """Whether a data set's file or folder can be read; `problem` is empty if it can."""

    path: _Line
    problem: _Line


class InotifyLimits(_ReportPart):
    """The kernel's limits for inotify."""

    instances: int
    watches: int


class FileSystem(_ReportPart):
    """The file system of a folder, in bytes; `entries`: files that can still be created, -1 without a limit."""

    folder: _Line
    use: _Line
    device: _Line
    free: int
    all: int
    entries: int
    readonly: bool


class Diagnostics(_ReportPart):
    """Checks for a diagnosis only.

    `failed`: units of fedsim, including instances; `unwritable`: folders; `outdated`: units that run with other files
    than those on disk, with the kinds of these files.
    """

    failed: tuple[_Line, ...]
    unwritable: tuple[_Line, ...]
    file_systems: tuple[FileSystem, ...] = ()
    configurations: tuple[ConfigurationCheck, ...]
    outdated: dict[_Line, tuple[_Line, ...]] = {}
    connections: tuple[ConnectionCheck, ...]
    datasets: tuple[DataSetCheck, ...]
    pages: _Line
    killed: tuple[_Line, ...]
    synchronised: _Line
    inotify: InotifyLimits


class HostReport(_ReportPart):
    """The state of a host. `skew`: seconds by which its clock is at least ahead of the control machine's."""

    clock: float
    duration: float
    version: _Line
    units: tuple[Unit, ...]
    disk: Capacity
    memory: Capacity
    gpus: tuple[_Line, ...]
    certificates: tuple[CertificateFile, ...]
    revoked: _Line
    metrics: dict[str, dict[str, float]]
    diagnostics: Diagnostics | None
    skew: float = Field(0.0, exclude=True)

    def days_left(self, now: float) -> float | None:
        """Days until the first of its certificates expires; None if it has no valid one."""
        days = []
        for file in self.certificates:
            try:
                days.append(days_of(file.read(), now))
            except ValueError:
                continue
        return None if not days else min(days)

    @property
    def activity(self) -> str:
        """The status line of the server or, on a node, of the client."""
        for part in ("fedsim-server", "fedsim-client"):
            for unit in self.units:
                if unit.name.startswith(part) and unit.status:
                    return plain(unit.status)
        return ""


def script(name: str) -> str:
    """The source of a program that runs on hosts."""
    return resources.files("fedsim_fleet.on_host").joinpath(name).read_text(encoding="utf-8")


def data_paths(host: Host) -> dict[str, str]:
    """The paths of a node's data sets, by name."""
    return {data.name: str(DATA / data.path) for data in host.datasets if data.format not in BUILT_IN}


def ask(connection: Connection, connect: list[tuple[str, int]] | None = None) -> HostReport:
    """Request a host's report.

    Args:
        connection: a connection to the host.
        connect: addresses and ports that the host must reach; None: a report without diagnostics.

    Raises:
        Unavailable: the host has no Python 3, or its report is invalid.
    """
    host = connection.host
    request: dict[str, Any] = {
        "units": [*host.units, *(["mariadb", "nginx"] if host.is_server else [])],
        "diagnostics": connect is not None,
        "connect": connect or [],
        "datasets": [] if host.is_server else list(data_paths(host).values()),
        "metrics": {name: port for name, port in host.metrics_port.items() if (name == "server") == host.is_server},
    }
    started = time.time()
    answer = connection.run(["python3", "-", json.dumps(request)], text=script("report.py"), within=_WITHIN)
    ended = time.time()
    try:
        report = HostReport.model_validate_json(answer.text().splitlines()[-1])
    except (ValidationError, IndexError) as error:
        raise Unavailable(f"its report is invalid: {answer.text()[-200:]!r}") from error
    # The clock was read between `started` and `latest`, at an unknown moment.
    latest = ended - report.duration
    skew = min(report.clock - started, 0) + max(report.clock - latest, 0)
    return report.model_copy(update={"skew": skew})
