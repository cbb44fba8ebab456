"""Renews the certificates of hosts over SSH: new keys on the host, signed here, in place together, daemons reloaded.

The owner of a certificate comes from the inventory, never from the host. A certificate that does not fit the inventory
or the authority is replaced by site.yml, which also writes the matching configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from cryptography import x509

from fedsim.errors import BadInput, FedsimError, Unavailable
from fedsim.spool.files import Role
from fedsim_fleet.authority import Authority, Issued
from fedsim_fleet.ca import FROM_ENVIRONMENT, passphrase_from
from fedsim_fleet.certificates import HTTPS, RENEW_DAYS, Use, is_due, mismatch
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.report import CertificateFile, HostReport, days_of
from fedsim_fleet.fleet.ssh import Connection

_FOLDER = "/etc/fedsim/pki"
_CA = "/opt/fedsim/current/bin/fedsim-ca"
_REQUEST = 'rm -f "$1.key.new"; exec "$3" request "$2" --key "$1.key.new"'
_INSTALL = """set -eu
umask 077
cat > "$1.crt.new"
chmod 0644 "$1.crt.new"
mv --no-target-directory "$1.key.new" "$1.key"
mv --no-target-directory "$1.crt.new" "$1.crt"
shift
systemctl try-reload-or-restart "$@"
"""


class CertificateOwner(NamedTuple):
    """The name in a certificate and its use."""

    name: str
    use: Use

    def __str__(self) -> str:
        """For messages: `client node-1`."""
        return f"{self.use} {self.name}"


@dataclass(frozen=True)
class Authorities:
    """The authority of the lab's hosts and that of the web's certificate, None in a lab that has none yet."""

    lab: Authority
    web: Authority | None = None

    @classmethod
    def of(cls, secrets: Path) -> Self:
        """Those in the folder of an inventory's secrets; `NotThere` if the lab has none."""
        passphrase = passphrase_in(secrets / "ca.passphrase")
        web = secrets / "web-ca"
        return cls(Authority(secrets / "ca", passphrase), Authority(web, passphrase) if web.exists() else None)

    def signer(self, owner: CertificateOwner) -> Authority:
        """The authority of a certificate."""
        return self.web if owner.use == HTTPS and self.web else self.lab

    def owners(self, host: Host) -> dict[str, CertificateOwner]:
        """The owners of a host's certificates, by file."""
        if not host.is_server:
            return {f"{_FOLDER}/host.crt": CertificateOwner(host.name, Role.CLIENT)}
        owners = {
            f"{_FOLDER}/host.crt": CertificateOwner(host.name, Role.SERVER),
            f"{_FOLDER}/web.crt": CertificateOwner(host.web_name, Role.WEB),
        }
        if self.web:
            owners[f"{_FOLDER}/https.crt"] = CertificateOwner(self.web.permitted[0], HTTPS)
        return owners


@dataclass(frozen=True)
class Renewal:
    """The days left of a host's first certificate to expire, and the names of those that were renewed."""

    days_left: float
    renewed: tuple[str, ...] = ()


def renew(connection: Connection, report: HostReport, authorities: Authorities, now: datetime) -> Renewal:
    """Renew the certificates of a host that are due.

    Raises:
        BadInput: a certificate does not fit the inventory or the authority, or the authority's key cannot be opened.
        Unavailable: the host cannot create a request, or cannot install what was signed.
    """
    host = connection.host
    files = {file.path: file for file in report.certificates}
    due, days = [], []
    for path, owner in authorities.owners(host).items():
        authority = authorities.signer(owner).certificate
        certificate = _fitting(files.get(path), owner, authority)
        if certificate is None or is_due(certificate, authority, now):
            due.append((path, owner))
        else:
            days.append(days_of(certificate, now.timestamp()))
    for _, owner in due:
        authorities.signer(owner).check_key()  # before anything is changed
    for path, owner in due:
        stem = path.removesuffix(".crt")
        request = connection.run(["sh", "-c", _REQUEST, "sh", stem, owner.name, _CA]).text()
        issued = authorities.signer(owner).sign(request.encode(), owner.name, owner.use)
        units = [*host.units, *(["nginx"] if host.is_server else [])]
        connection.run(["sh", "-c", _INSTALL, "sh", stem, *units], text=issued.certificate).text()
        days.append(issued.days_left(now))
    return Renewal(min(days), tuple(owner.name for _, owner in due))


def _fitting(
    file: CertificateFile | None, owner: CertificateOwner, authority: x509.Certificate
) -> x509.Certificate | None:
    """The certificate in a file; None if it is to be replaced. `BadInput` if that is the task of site.yml."""
    if file is None:
        raise BadInput(f"{owner} has no certificate: run site.yml")
    if file.problem:  # an installation was interrupted
        return None
    try:
        certificate = file.read()
    except ValueError as error:
        raise BadInput(f"{file.path} is not a certificate ({error}): run site.yml") from error
    if problem := mismatch(certificate, owner.name, owner.use, authority):
        raise BadInput(f"{file.path} {problem}: run site.yml")
    return certificate


@dataclass(frozen=True)
class Result:
    """A line about a host; `good` is false if its certificate remains to be renewed."""

    name: str
    text: str
    good: bool


def result(host: Host, answer: Renewal | FedsimError, authorities: Authorities, now: datetime) -> Result:
    """What became of a host's certificates. A host that does not answer is judged by what the authority issued."""
    if isinstance(answer, Renewal):
        text = (
            f"renewed, valid for {answer.days_left:.0f} days" if answer.renewed else f"{answer.days_left:.0f} days left"
        )
        return Result(host.name, text, good=True)
    if isinstance(answer, Unavailable):
        days = min(_days_issued(authorities.signer(owner), owner, now) for owner in authorities.owners(host).values())
        if days >= RENEW_DAYS:
            return Result(host.name, f"{days} days left; it could not be asked: {answer}", good=True)
    return Result(host.name, f"not renewed: {answer}", good=False)


def others(authorities: Authorities, deployed: Sequence[Host], now: datetime) -> list[Result]:
    """What this command cannot renew: certificates of hosts that institutions deploy, and the authorities' own."""
    names = {owner.name for host in deployed for owner in authorities.owners(host).values()}
    results = [
        Result(name, f"{days} days left: issue a new one with fedsim-ca renew {name}, and send it there", good=False)
        for name, item in _newest(authorities.lab, now).items()
        if name not in names and (days := item.days_left(now)) < RENEW_DAYS
    ]
    for name, one in (("the authority", authorities.lab), ("the web's authority", authorities.web)):
        if one and (days := one.days_left()) < 2 * RENEW_DAYS:
            what = f"{days} days left, after which no certificate is valid"
            results.append(Result(name, f"{what}: change it as docs/how-to/certificates.md says", good=False))
    return results


def passphrase_in(path: Path) -> Callable[[], bytes]:
    """Return a function that reads the passphrase from a file or else from the environment."""

    def passphrase() -> bytes:
        if not path.exists() and FROM_ENVIRONMENT not in os.environ:
            advice = f"run site.yml, which knows it, or set {FROM_ENVIRONMENT}"
            raise BadInput(f"a certificate is due, and the authority's passphrase is not in {path}: {advice}")
        return passphrase_from(path if path.exists() else None)()

    return passphrase


def _days_issued(authority: Authority, owner: CertificateOwner, now: datetime) -> int:
    """The days left of the newest certificate that an authority issued to an owner; -1 without one."""
    issued = _newest(authority, now)
    return issued[owner.name].days_left(now) if owner.name in issued else -1


def _newest(authority: Authority, now: datetime) -> dict[str, Issued]:
    return {item.name: item for item in authority.issued() if item.state(now) == "valid"}
