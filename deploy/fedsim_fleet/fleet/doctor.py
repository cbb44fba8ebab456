"""What keeps a lab from working: each check looks at one host's report and says what is wrong and what to do."""

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
from fedsim_fleet.fleet.report import Deep, HostReport, data_paths, days_of

LEAST_DISK = 2_000_000_000
LEAST_MEMORY = 300_000_000
MOST_SKEW = 30.0
DAYS_AHEAD = 14
LEAST_INSTANCES = 128
# By which a host is known; instances have their own elsewhere.
OWN = "/etc/fedsim/pki/host.crt"
_NODE_ONLINE = re.compile(r'fedsim_node_online\{node="(?P<name>[^"]+)"\}')


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    host: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class PublishedAuthority:
    """The lab's authority as the control machine has it: its certificates, and whose it has revoked."""

    certificates: Sequence[x509.Certificate]
    revoked: frozenset[tuple[x509.Name, int]]  # issuer and serial number
    list_digest: str  # SHA-256 of crl.pem, in hexadecimal

    @classmethod
    def of(cls, certificates: bytes, revoked: bytes) -> Self:
        """Of what `ca.crt` and `crl.pem` hold; ValueError if that is something else."""
        lists = revocation_lists(revoked)
        return cls(
            x509.load_pem_x509_certificates(certificates),
            frozenset((one.issuer, entry.serial_number) for one in lists for entry in one),
            sha256(revoked).hexdigest(),
        )


@dataclass(frozen=True)
class Lab:
    """What a check knows besides the host itself; `authority` is None where its files are not on this machine."""

    hosts: Sequence[Host]
    authority: PublishedAuthority | None
    now: float


# What is wrong, and what to do.
Told = Iterator[tuple[str, str]]
Check = Callable[[Host, HostReport, Deep, Lab], Told]


def _units(_: Host, report: HostReport, __: Deep, ___: Lab) -> Told:
    for unit in report.units:
        if not unit.loaded:
            yield f"{unit.name} is not installed", "run site.yml"
        elif unit.state != "active":
            said = f"; it said last: {' | '.join(unit.lines)}" if unit.lines else ""
            yield f"{unit.name} is {unit.state} ({unit.sub}){said}", f"journalctl -u {unit.name} -n 50"
        elif unit.enabled not in {"enabled", "enabled-runtime", "alias", "static", "indirect"}:
            yield f"{unit.name} does not start with the host ({unit.enabled})", f"systemctl enable {unit.name}"


def _strays(_: Host, __: HostReport, deep: Deep, ___: Lab) -> Told:
    for name in deep.failed:
        yield f"{name} has failed", f"journalctl -u {name} -n 50"
    for folder in deep.unwritable:
        yield f"the user fedsim cannot write {folder}", "is the disk mounted read-only? else systemd-tmpfiles --create"


def _room(_: Host, report: HostReport, __: Deep, ___: Lab) -> Told:
    if report.disk.free < LEAST_DISK:
        yield (
            f"only {size(report.disk.free)} of {size(report.disk.all)} are free below /var/lib/fedsim",
            "make room; tasks wait below the limit `min_free_bytes` and go on by themselves",
        )
    if report.memory.free < LEAST_MEMORY:
        yield (
            f"only {size(report.memory.free)} of {size(report.memory.all)} of memory are available",
            "end other programs, or give client.yml fewer `workers`",
        )


def _clock(_: Host, report: HostReport, deep: Deep, __: Lab) -> Told:
    if abs(report.skew) > MOST_SKEW:
        yield f"its clock differs by {report.skew:+.0f} s from this machine's", "timedatectl set-ntp true"
    elif deep.synchronised == "no" and abs(report.skew) > 1:
        yield f"nothing sets its clock, which differs by {report.skew:+.1f} s", "timedatectl set-ntp true"


def _version(_: Host, report: HostReport, __: Deep, ___: Lab) -> Told:
    if not report.version:
        yield "fedsim is not installed (/opt/fedsim/current)", "run site.yml"


def _configuration(_: Host, __: HostReport, deep: Deep, ___: Lab) -> Told:
    for checked in deep.configurations:
        if not checked.valid:
            yield f"{checked.path} is not valid: {checked.says.strip()}", "set it right in the inventory, run site.yml"


def _certificates(host: Host, report: HostReport, _: Deep, lab: Lab) -> Told:
    again = "run rotate-certs.yml"
    if not any(file.path == OWN for file in report.certificates):
        yield "it has no certificate", "run site.yml"
    for file in report.certificates:
        try:
            certificate = file.read()
        except ValueError as error:
            yield f"{file.path} is no certificate: {error}", again
            continue
        if file.problem:
            yield f"{file.path} and its key do not go together: {file.problem}", again
        yield from _dates(file.path, certificate, lab.now)
        if file.path == OWN:
            yield from ((problem, again) for problem in _identity(host, certificate))
        if lab.authority is None or Path(file.path).name == "ca.crt":
            continue
        if not any(signed_by(certificate, authority) for authority in lab.authority.certificates):
            yield f"{file.path} is not signed by the lab's authority", again
        elif (certificate.issuer, certificate.serial_number) in lab.authority.revoked:
            yield f"{file.path} is revoked", "run rotate-certs.yml, or remove-node.yml if the host is to leave"


def _dates(path: str, certificate: x509.Certificate, now: float) -> Told:
    days = days_of(certificate, now)
    if certificate.not_valid_before_utc.timestamp() > now:
        yield f"{path} is not valid yet", "compare this machine's clock and the host's"
    if days <= 0:
        yield f"{path} has expired", "run rotate-certs.yml"
    elif days < DAYS_AHEAD:
        yield f"{path} ends in {days:.0f} days", "run rotate-certs.yml"


def _identity(host: Host, certificate: x509.Certificate) -> Iterator[str]:
    wanted = Identity(host.name, Role.SERVER if host.is_server else Role.CLIENT)
    try:
        owner = owner_of(certificate)
    except (ValueError, x509.ExtensionNotFound) as error:
        yield f"host.crt is none of fedsim-ca's: {error}"
        return
    if owner != wanted:
        yield f"host.crt is that of {owner}, not of {wanted}"


def _revoked(_: Host, report: HostReport, __: Deep, lab: Lab) -> Told:
    if lab.authority is not None and report.revoked != lab.authority.list_digest:
        yield "its list of revoked certificates is not the lab's newest", "run site.yml"


def _ways(_: Host, __: HostReport, deep: Deep, lab: Lab) -> Told:
    names = {(other.reached_at, other.receiver_port): other.name for other in lab.hosts}
    for way in deep.ways:
        if way.problem:
            who = names.get((way.address, way.port), way.address)
            yield (
                f"it cannot reach {who} at {way.address}:{way.port}: {way.problem}",
                f"is fedsim-receiver.socket up on {who}, and does no firewall stand between them?",
            )


def _data(host: Host, _: HostReport, deep: Deep, __: Lab) -> Told:
    names = {path: name for name, path in data_paths(host).items()}
    for data in deep.datasets:
        if data.problem:
            name = names.get(data.path, data.path)
            yield f"the data set {name} ({data.path}) {data.problem}", f"fedsim-fleet push-data {name} PATH"


def _server(host: Host, report: HostReport, deep: Deep, lab: Lab) -> Told:
    if not host.is_server:
        return
    if deep.pages:
        yield f"the pages do not answer through nginx: {deep.pages}", "systemctl status nginx fedsim-web"
    numbers = report.metrics.get("server", {})
    if not numbers:
        yield "the server does not tell its numbers", "systemctl status fedsim-server"
        return
    online = {match["name"]: value for key, value in numbers.items() if (match := _NODE_ONLINE.fullmatch(key))}
    deployed = {other.name for other in lab.hosts if not other.is_server}
    for name in sorted(deployed | online.keys()):
        if not online.get(name):
            institution = f"ask the institution of {name}, which deploys it itself"
            remedy = f"journalctl -u fedsim-client on {name}" if name in deployed else institution
            yield f"the server has not heard of {name} lately", remedy
    for what in ("database", "room"):
        if numbers.get(f'fedsim_waiting{{for="{what}"}}'):
            remedy = "systemctl status mariadb" if what == "database" else "make room below /var/lib/fedsim"
            yield f"the server waits for {what}", remedy


def _node(host: Host, report: HostReport, deep: Deep, _: Lab) -> Told:
    if host.is_server:
        return
    numbers = report.metrics.get("client", {})
    if not numbers:
        yield "the client does not tell its numbers", "systemctl status fedsim-client"
    elif any(data.problem for data in deep.datasets):
        return  # told already, with the name
    elif problems := int(numbers.get("fedsim_dataset_problems", 0)):
        yield f"{problems} of its data sets cannot be used", "journalctl -u fedsim-client FEDSIM_EVENT=dataset_problem"


def _kernel(_: Host, __: HostReport, deep: Deep, ___: Lab) -> Told:
    if deep.killed:
        yield (
            f"the kernel has ended processes for want of memory: {deep.killed[-1]}",
            "give client.yml fewer `workers`, or the host more memory",
        )
    if deep.watches.instances < LEAST_INSTANCES:
        yield (
            f"only {deep.watches.instances} inotify instances are allowed for a user",
            "sysctl -w fs.inotify.max_user_instances=1024, and the same in /etc/sysctl.d",
        )


CHECKS: tuple[Check, ...] = (
    _units,
    _strays,
    _version,
    _configuration,
    _certificates,
    _revoked,
    _clock,
    _room,
    _ways,
    _data,
    _server,
    _node,
    _kernel,
)


def diagnose(answers: Mapping[str, HostReport | FedsimError], lab: Lab) -> list[Finding]:
    """Everything that is wrong, in the order of the hosts."""
    findings = []
    for host in (host for host in lab.hosts if host.name in answers):
        told = answers[host.name]
        if isinstance(told, FedsimError):
            findings.append(Finding(host.name, "it does not answer", str(told)))
        elif told.deep is None:
            raise ValueError("a diagnosis needs deep reports")
        else:
            for check in CHECKS:
                findings += [Finding(host.name, *found) for found in check(host, told, told.deep, lab)]
    return findings + list(_together(answers))


def _together(answers: Mapping[str, HostReport | FedsimError]) -> Iterator[Finding]:
    by_version: dict[str, list[str]] = {}
    for name, told in answers.items():
        if isinstance(told, HostReport) and told.version:
            by_version.setdefault(told.version, []).append(name)
    if len(by_version) > 1:
        told_all = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
        yield Finding("all", f"hosts have different versions: {told_all}", "run upgrade.yml to its end")


def ways_from(host: Host, hosts: Sequence[Host]) -> list[tuple[str, int]]:
    """Whom a host must reach: the server every node, a node the server."""
    return [(other.reached_at, other.receiver_port) for other in hosts if other.is_server != host.is_server]


def authority_of(folder: Path) -> PublishedAuthority | None:
    """The lab's authority, if its files lie on this machine.

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
        raise BadInput(f"{folder} does not hold what fedsim-ca makes (ca.crt, crl.pem): {error}") from error
