"""Diagnosis of a lab: each check examines one host's report and yields problems with their remedies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from cryptography import x509

from fedsim.cli.output import size
from fedsim.errors import BadInput, FedsimError
from fedsim.spool.files import Role
from fedsim.wire.peer import Identity
from fedsim.wire.tls import owner_of, revocation_lists, signed_by
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.report import Diagnostics, FileSystem, HostReport, data_paths, days_of

# Free space by the use of a folder: versions and spool need it for an upgrade and for models, data is only read.
MIN_FREE_BYTES = {
    "versions": 2_000_000_000,
    "spool": 2_000_000_000,
    "checkpoints": 1_000_000_000,
    "database": 1_000_000_000,
    "logs": 200_000_000,
    "temporary": 100_000_000,
}
MIN_FREE_ENTRIES = 10_000
MIN_FREE_MEMORY_BYTES = 300_000_000
MAX_SKEW_SECONDS = 30.0
MIN_CERTIFICATE_DAYS = 30  # fedsim-fleet renew should have replaced it long before
MIN_INOTIFY_INSTANCES = 128
# The certificate of the host itself; those of instances are elsewhere.
HOST_CERTIFICATE = "/etc/fedsim/pki/host.crt"
HTTPS_CERTIFICATE = "/etc/fedsim/pki/https.crt"
_NODE_ONLINE = re.compile(r'fedsim_node_online\{node="(?P<name>[^"]+)"\}')


@dataclass(frozen=True)
class Finding:
    """A problem of a host, and what to do about it."""

    host: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class PublishedAuthority:
    """What the lab's authority publishes: its certificates and its revocation list."""

    certificates: Sequence[x509.Certificate]
    revoked: frozenset[tuple[x509.Name, int]]  # issuer and serial number
    list_digest: str  # SHA-256 of crl.pem, in hexadecimal

    @classmethod
    def of(cls, certificates: bytes, revoked: bytes) -> Self:
        """Parse the content of `ca.crt` and `crl.pem`; ValueError if it is invalid."""
        lists = revocation_lists(revoked)
        return cls(
            x509.load_pem_x509_certificates(certificates),
            frozenset((one.issuer, entry.serial_number) for one in lists for entry in one),
            sha256(revoked).hexdigest(),
        )


@dataclass(frozen=True)
class Lab:
    """The context of a check; `authority` is None if its files are not on this machine."""

    hosts: Sequence[Host]
    authority: PublishedAuthority | None
    now: float
    web_authority: PublishedAuthority | None = None


# Pairs of problem and remedy.
Problems = Iterator[tuple[str, str]]
Check = Callable[[Host, HostReport, Diagnostics, Lab], Problems]


def _units(_: Host, report: HostReport, __: Diagnostics, ___: Lab) -> Problems:
    for unit in report.units:
        if not unit.loaded:
            yield f"{unit.name} is not installed", "run site.yml"
        elif unit.state != "active":
            last_lines = f"; last log lines: {' | '.join(unit.lines)}" if unit.lines else ""
            yield f"{unit.name} is {unit.state} ({unit.sub}){last_lines}", f"journalctl -u {unit.name} -n 50"
        elif unit.enabled not in {"enabled", "enabled-runtime", "alias", "static", "indirect"}:
            yield f"{unit.name} does not start with the host ({unit.enabled})", f"systemctl enable {unit.name}"


def _other_units(_: Host, __: HostReport, diagnostics: Diagnostics, ___: Lab) -> Problems:
    for name in diagnostics.failed:
        yield f"{name} has failed", f"journalctl -u {name} -n 50"
    for folder in diagnostics.unwritable:
        yield f"the user fedsim cannot write {folder}", "remount the disk writable, or run systemd-tmpfiles --create"


def _file_systems(_: Host, __: HostReport, diagnostics: Diagnostics, ___: Lab) -> Problems:
    by_device: dict[str, list[FileSystem]] = {}
    for one in diagnostics.file_systems:
        by_device.setdefault(one.device, []).append(one)
    for sharing in by_device.values():
        names, first = ", ".join(one.folder for one in sharing), sharing[0]
        needed = sum(MIN_FREE_BYTES.get(use, 0) for use in {one.use for one in sharing})
        if first.all < needed:
            yield (
                f"the file system of {names} has only {size(first.all)}, {size(needed)} are needed",
                "enlarge it, or mount a larger one there",
            )
        elif first.free < needed:
            free = f"only {size(first.free)} of {size(first.all)} are free"
            yield (
                f"{free} on the file system of {names}, {size(needed)} are needed",
                "free disk space there; below `min_free_bytes` tasks are suspended and resume by themselves",
            )
        if 0 <= first.entries < MIN_FREE_ENTRIES:
            yield f"only {first.entries} more files fit on the file system of {names}", "delete files there"
        if first.readonly:
            yield f"the file system of {names} is mounted read-only", "see dmesg, then remount it writable"


def _resources(_: Host, report: HostReport, __: Diagnostics, ___: Lab) -> Problems:
    if report.memory.free < MIN_FREE_MEMORY_BYTES:
        yield (
            f"only {size(report.memory.free)} of {size(report.memory.all)} of memory are available",
            "stop other programs, or reduce `workers` in client.yml",
        )


def _clock(_: Host, report: HostReport, diagnostics: Diagnostics, __: Lab) -> Problems:
    if abs(report.skew) > MAX_SKEW_SECONDS:
        yield f"its clock differs by {report.skew:+.0f} s from this machine's", "timedatectl set-ntp true"
    elif diagnostics.synchronised == "no" and abs(report.skew) > 1:
        yield f"its clock is not synchronised and differs by {report.skew:+.1f} s", "timedatectl set-ntp true"


def _version(_: Host, report: HostReport, __: Diagnostics, ___: Lab) -> Problems:
    if not report.version:
        yield "fedsim is not installed (/opt/fedsim/current)", "run site.yml"


def _configuration(_: Host, __: HostReport, diagnostics: Diagnostics, ___: Lab) -> Problems:
    for checked in diagnostics.configurations:
        if not checked.valid:
            yield (
                f"{checked.path} is not valid: {checked.output.strip()}",
                "correct it in the inventory, then run site.yml",
            )


def _outdated(_: Host, __: HostReport, diagnostics: Diagnostics, ___: Lab) -> Problems:
    for unit, kinds in diagnostics.outdated.items():
        name = unit.removesuffix(".service")
        yield (
            f"{name} runs with older files than those on disk ({', '.join(kinds)})",
            f"run site.yml, or systemctl {'reload' if name == 'nginx' else 'restart'} {name} on the host",
        )


def _certificates(host: Host, report: HostReport, _: Diagnostics, lab: Lab) -> Problems:
    again = "run rotate-certs.yml"
    if not any(file.path == HOST_CERTIFICATE for file in report.certificates):
        yield "it has no certificate", "run site.yml"
    for file in report.certificates:
        try:
            certificate = file.read()
        except ValueError as error:
            yield f"{file.path} is not a certificate: {error}", again
            continue
        if file.problem:
            yield f"{file.path} does not match its key: {file.problem}", again
        yield from _dates(file.path, certificate, lab.now)
        if file.path == HOST_CERTIFICATE:
            yield from ((problem, again) for problem in _identity(host, certificate))
        signer = lab.web_authority if file.path == HTTPS_CERTIFICATE else lab.authority
        if signer is None or Path(file.path).name == "ca.crt":
            continue
        if not any(signed_by(certificate, authority) for authority in signer.certificates):
            whose = "the authority of the web's certificate" if signer is lab.web_authority else "the lab's authority"
            yield f"{file.path} is not signed by {whose}", again
        elif (certificate.issuer, certificate.serial_number) in signer.revoked:
            yield f"{file.path} is revoked", "run rotate-certs.yml, or remove-node.yml if the host is to be removed"


def _dates(path: str, certificate: x509.Certificate, now: float) -> Problems:
    days = days_of(certificate, now)
    if certificate.not_valid_before_utc.timestamp() > now:
        yield f"{path} is not valid yet", "check the clocks of this machine and of the host"
    if days <= 0:
        yield f"{path} has expired", "run rotate-certs.yml"
    elif days < MIN_CERTIFICATE_DAYS:
        yield f"{path} expires in {days:.0f} days", "fedsim-fleet renew"


def _identity(host: Host, certificate: x509.Certificate) -> Iterator[str]:
    expected = Identity(host.name, Role.SERVER if host.is_server else Role.CLIENT)
    try:
        owner = owner_of(certificate)
    except (ValueError, x509.ExtensionNotFound) as error:
        yield f"host.crt was not issued by fedsim-ca: {error}"
        return
    if owner != expected:
        yield f"host.crt belongs to {owner}, not to {expected}"


def _revoked(_: Host, report: HostReport, __: Diagnostics, lab: Lab) -> Problems:
    if lab.authority is not None and report.revoked != lab.authority.list_digest:
        yield "its certificate revocation list is out of date", "run site.yml"


def _connections(_: Host, __: HostReport, diagnostics: Diagnostics, lab: Lab) -> Problems:
    names = {(other.reached_at, other.receiver_port): other.name for other in lab.hosts}
    for connection in diagnostics.connections:
        if connection.problem:
            who = names.get((connection.address, connection.port), connection.address)
            yield (
                f"it cannot reach {who} at {connection.address}:{connection.port}: {connection.problem}",
                f"check fedsim-receiver.socket on {who}, and firewalls between them",
            )


def _data(host: Host, _: HostReport, diagnostics: Diagnostics, __: Lab) -> Problems:
    names = {path: name for name, path in data_paths(host).items()}
    for data in diagnostics.datasets:
        if data.problem:
            name = names.get(data.path, data.path)
            yield f"the data set {name} ({data.path}) {data.problem}", f"fedsim-fleet push-data {name} PATH"


def _server(host: Host, report: HostReport, diagnostics: Diagnostics, lab: Lab) -> Problems:
    if not host.is_server:
        return
    if diagnostics.pages:
        yield f"the pages do not answer through nginx: {diagnostics.pages}", "systemctl status nginx fedsim-web"
    metrics = report.metrics.get("server", {})
    if not metrics:
        yield "the server does not serve its metrics", "systemctl status fedsim-server"
        return
    online = {match["name"]: value for key, value in metrics.items() if (match := _NODE_ONLINE.fullmatch(key))}
    deployed = {other.name for other in lab.hosts if not other.is_server}
    for name in sorted(deployed | online.keys()):
        if not online.get(name):
            institution = f"ask the institution that deploys {name}"
            remedy = f"journalctl -u fedsim-client on {name}" if name in deployed else institution
            yield f"the server has not heard from {name} recently", remedy
    for what in ("database", "disk_space"):
        if metrics.get(f'fedsim_waiting{{for="{what}"}}'):
            remedy = "systemctl status mariadb" if what == "database" else "free disk space below /var/lib/fedsim"
            yield f"the server waits for {what.replace('_', ' ')}", remedy


def _node(host: Host, report: HostReport, diagnostics: Diagnostics, _: Lab) -> Problems:
    if host.is_server:
        return
    metrics = report.metrics.get("client", {})
    if not metrics:
        yield "the client does not serve its metrics", "systemctl status fedsim-client"
    elif any(data.problem for data in diagnostics.datasets):
        return  # reported by `_data`, with the name
    elif problems := int(metrics.get("fedsim_dataset_problems", 0)):
        yield f"{problems} of its data sets cannot be used", "journalctl -u fedsim-client FEDSIM_EVENT=dataset_problem"


def _kernel(_: Host, __: HostReport, diagnostics: Diagnostics, ___: Lab) -> Problems:
    if diagnostics.killed:
        yield (
            f"the kernel killed a process because memory was exhausted: {diagnostics.killed[-1]}",
            "reduce `workers` in client.yml, or add memory",
        )
    if diagnostics.inotify.instances < MIN_INOTIFY_INSTANCES:
        yield (
            f"a user may have only {diagnostics.inotify.instances} inotify instances",
            "sysctl -w fs.inotify.max_user_instances=1024, and the same in /etc/sysctl.d",
        )


CHECKS: tuple[Check, ...] = (
    _units,
    _other_units,
    _version,
    _configuration,
    _outdated,
    _certificates,
    _revoked,
    _clock,
    _resources,
    _file_systems,
    _connections,
    _data,
    _server,
    _node,
    _kernel,
)


def diagnose(answers: Mapping[str, HostReport | FedsimError], lab: Lab) -> list[Finding]:
    """All findings, in the order of the hosts."""
    findings = []
    for host in (host for host in lab.hosts if host.name in answers):
        answer = answers[host.name]
        if isinstance(answer, FedsimError):
            findings.append(Finding(host.name, "it does not answer", str(answer)))
        elif answer.diagnostics is None:
            raise ValueError("a diagnosis needs reports with diagnostics")
        else:
            for check in CHECKS:
                findings += [Finding(host.name, *found) for found in check(host, answer, answer.diagnostics, lab)]
    return findings + list(_versions(answers))


def _versions(answers: Mapping[str, HostReport | FedsimError]) -> Iterator[Finding]:
    by_version: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if isinstance(answer, HostReport) and answer.version:
            by_version.setdefault(answer.version, []).append(name)
    if len(by_version) > 1:
        listed = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
        yield Finding("all", f"hosts have different versions: {listed}", "run upgrade.yml again until it succeeds")


def required_peers(host: Host, hosts: Sequence[Host]) -> list[tuple[str, int]]:
    """The addresses that a host must reach: the server all nodes, a node the server."""
    return [(other.reached_at, other.receiver_port) for other in hosts if other.is_server != host.is_server]


def read_authority(folder: Path) -> PublishedAuthority | None:
    """Read what the lab's authority publishes; None if its files are not on this machine.

    Raises:
        BadInput: they cannot be read.
    """
    try:
        return PublishedAuthority.of((folder / "ca.crt").read_bytes(), (folder / "crl.pem").read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{folder} does not contain a valid ca.crt and crl.pem of fedsim-ca: {error}") from error
