"""What keeps a lab from working: each check looks at one host's report and says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedsim.cli.output import size
from fedsim.errors import BadInput, FedsimError
from fedsim.wire.trust import ROLE_PREFIX
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.report import Deep, Report, days_of

LEAST_DISK = 2_000_000_000
LEAST_MEMORY = 300_000_000
MOST_SKEW = 30.0
DAYS_AHEAD = 14
LEAST_INSTANCES = 128
# By which a host is known; instances have their own elsewhere.
OWN = "/etc/fedsim/pki/host.crt"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    host: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Lab:
    """What a check knows besides the host itself."""

    hosts: Sequence[Host]
    authority: bytes | None  # the lab's ca.crt, PEM
    revoked: str | None  # SHA-256 of the lab's crl.pem
    now: float


# What is wrong, and what to do.
Told = Iterator[tuple[str, str]]
Check = Callable[[Host, Report, Deep, Lab], Told]


def _units(_: Host, report: Report, __: Deep, ___: Lab) -> Told:
    for unit in report.units:
        if not unit.loaded:
            yield f"{unit.name} is not installed", "run site.yml"
        elif unit.state != "active":
            said = f"; it said last: {' | '.join(unit.lines)}" if unit.lines else ""
            yield f"{unit.name} is {unit.state} ({unit.sub}){said}", f"journalctl -u {unit.name} -n 50"
        elif unit.enabled not in {"enabled", "enabled-runtime", "alias", "static", "indirect"}:
            yield f"{unit.name} does not start with the host ({unit.enabled})", f"systemctl enable {unit.name}"


def _room(_: Host, report: Report, __: Deep, ___: Lab) -> Told:
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


def _clock(_: Host, report: Report, deep: Deep, __: Lab) -> Told:
    if abs(report.skew) > MOST_SKEW:
        yield f"its clock differs by {report.skew:+.0f} s from this machine's", "timedatectl set-ntp true"
    elif deep.synchronised == "no" and abs(report.skew) > 1:
        yield f"nothing sets its clock, which differs by {report.skew:+.1f} s", "timedatectl set-ntp true"


def _version(_: Host, report: Report, __: Deep, ___: Lab) -> Told:
    if not report.version:
        yield "fedsim is not installed (/opt/fedsim/current)", "run site.yml"


def _configuration(_: Host, __: Report, deep: Deep, ___: Lab) -> Told:
    for checked in deep.configurations:
        if not checked.valid:
            yield f"{checked.path} is not valid: {checked.says.strip()}", "set it right in the inventory, run site.yml"


def _certificates(host: Host, report: Report, _: Deep, lab: Lab) -> Told:
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
        days = days_of(certificate, lab.now)
        if days <= 0:
            yield f"{file.path} has expired", again
        elif days < DAYS_AHEAD:
            yield f"{file.path} ends in {days:.0f} days", again
        if file.path == OWN:
            yield from ((problem, again) for problem in _identity(host, certificate))
        if Path(file.path).name != "ca.crt" and lab.authority is not None and not _signed(certificate, lab.authority):
            yield f"{file.path} is not signed by the lab's authority", again


def _identity(host: Host, certificate: x509.Certificate) -> Iterator[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        yield "host.crt names nobody"
        return
    name, role = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.UniformResourceIdentifier)
    if name != [host.name]:
        yield f"host.crt is of {', '.join(name) or 'nobody'}, not of {host.name}"
    wanted = ROLE_PREFIX + ("server" if host.is_server else "client")
    if role != [wanted]:
        yield f"host.crt has the role {', '.join(role) or 'none'}, not {wanted}"


def _signed(certificate: x509.Certificate, authority: bytes) -> bool:
    for one in x509.load_pem_x509_certificates(authority):
        try:
            certificate.verify_directly_issued_by(one)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def _revoked(_: Host, report: Report, __: Deep, lab: Lab) -> Told:
    if lab.revoked is not None and report.revoked != lab.revoked:
        yield "its list of revoked certificates is not the lab's newest", "run site.yml"


def _ways(_: Host, __: Report, deep: Deep, lab: Lab) -> Told:
    names = {(other.reached_at, other.receiver_port): other.name for other in lab.hosts}
    for way in deep.ways:
        if way.problem:
            who = names.get((way.address, way.port), way.address)
            yield (
                f"it cannot reach {who} at {way.address}:{way.port}: {way.problem}",
                f"is fedsim-receiver.socket up on {who}, and does no firewall stand between them?",
            )


def _data(_: Host, __: Report, deep: Deep, ___: Lab) -> Told:
    for data in deep.datasets:
        if data.problem:
            yield f"the data set {data.path} {data.problem}", "fedsim-fleet push-data NAME PATH, or run site.yml"


def _server(host: Host, report: Report, deep: Deep, lab: Lab) -> Told:
    if not host.is_server:
        return
    if deep.pages:
        yield f"the pages do not answer through nginx: {deep.pages}", "systemctl status nginx fedsim-web"
    numbers = report.metrics.get("server", {})
    if not numbers:
        yield "the server does not tell its numbers", "systemctl status fedsim-server"
        return
    nodes = sum(not other.is_server for other in lab.hosts)
    online = int(numbers.get("fedsim_nodes_online", 0))
    if online < nodes:
        yield (
            f"the server has lately heard of {online} of {nodes} nodes",
            "journalctl -u fedsim-client on the nodes that the page Nodes shows as offline",
        )
    for what in ("database", "room"):
        if numbers.get(f'fedsim_waiting{{for="{what}"}}'):
            remedy = "systemctl status mariadb" if what == "database" else "make room below /var/lib/fedsim"
            yield f"the server waits for {what}", remedy


def _node(host: Host, report: Report, _: Deep, __: Lab) -> Told:
    if host.is_server:
        return
    numbers = report.metrics.get("client", {})
    if not numbers:
        yield "the client does not tell its numbers", "systemctl status fedsim-client"
    elif problems := int(numbers.get("fedsim_dataset_problems", 0)):
        yield f"{problems} of its data sets cannot be used", "journalctl -u fedsim-client FEDSIM_EVENT=dataset_problem"


def _kernel(_: Host, __: Report, deep: Deep, ___: Lab) -> Told:
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


def diagnose(answers: Mapping[str, Report | FedsimError], lab: Lab) -> list[Finding]:
    """Everything that is wrong, in the order of the hosts."""
    findings = []
    for host in lab.hosts:
        told = answers[host.name]
        if isinstance(told, FedsimError):
            findings.append(Finding(host.name, "it does not answer", str(told)))
        elif told.deep is None:
            raise ValueError("a diagnosis needs deep reports")
        else:
            for check in CHECKS:
                findings += [Finding(host.name, *found) for found in check(host, told, told.deep, lab)]
    return findings + list(_together(answers))


def _together(answers: Mapping[str, Report | FedsimError]) -> Iterator[Finding]:
    by_version: dict[str, list[str]] = {}
    for name, told in answers.items():
        if isinstance(told, Report) and told.version:
            by_version.setdefault(told.version, []).append(name)
    if len(by_version) > 1:
        told_all = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
        yield Finding("all", f"hosts have different versions: {told_all}", "run upgrade.yml to its end")


def ways_from(host: Host, hosts: Sequence[Host]) -> list[tuple[str, int]]:
    """Whom a host must reach: the server every node, a node the server."""
    return [(other.reached_at, other.receiver_port) for other in hosts if other.is_server != host.is_server]


def authority_of(folder: Path) -> tuple[bytes | None, str | None]:
    """The lab's ca.crt and the digest of its crl.pem, if they lie on this machine."""
    try:
        authority = (folder / "ca.crt").read_bytes()
        revoked = sha256((folder / "crl.pem").read_bytes()).hexdigest()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}") from error
    return authority, revoked
