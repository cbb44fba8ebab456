"""`fedsim-fleet renew` on a folder of this machine in place of a host."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedsim.errors import BadInput, Unavailable
from fedsim.spool.files import Role
from fedsim.wire.peer import Identity
from fedsim.wire.tls import owner_of, signed_by
from fedsim_fleet.authority import Authority
from fedsim_fleet.certificates import HTTPS, RENEW_DAYS
from fedsim_fleet.fleet import renew
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.renew import Authorities
from fedsim_fleet.fleet.report import CertificateFile, HostReport
from fedsim_fleet.fleet.ssh import CommandResult
from fedsim_fleet.request import request_for

NOW = datetime.now(UTC)
NODE = Host(name="node-a", is_server=False, fedsim_services=["fedsim-receiver", "fedsim-client"])
SERVER = Host(name="server", is_server=True, fedsim_services=["fedsim-server"])
PASSPHRASE = b"a passphrase of a test"
ME = Identity("node-a", Role.CLIENT)


class LocalHost:
    """A connection whose commands run here; systemctl writes down what it was called with."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        program = folder / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$*" >> {folder / "calls"}\n')
        program.chmod(0o755)
        self._around = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def run(self, command: list[str], *, text: str = "", within: float = 60) -> CommandResult:
        done = subprocess.run(
            command, check=False, input=text, capture_output=True, text=True, timeout=within, env=self._around
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(renew, "_FOLDER", str(tmp_path))
    monkeypatch.setattr(renew, "_CA", str(Path(sys.executable).with_name("fedsim-ca")))
    Authority.make(tmp_path / "ca", lambda: PASSPHRASE, name="lab", clock=lambda: NOW)
    return tmp_path


def authority(folder: Path, days_ago: float = 0) -> Authority:
    return Authority(folder / "ca", lambda: PASSPHRASE, clock=lambda: NOW - timedelta(days=days_ago))


def report(folder: Path, owner: Identity, days_left: float, problem: str = "") -> HostReport:
    """The report of a host whose certificate has this many days left."""
    (folder / "host.key").unlink(missing_ok=True)
    request, _ = request_for(folder / "host.key", owner.name)
    issued = authority(folder, 365 - days_left).sign(request, owner.name, owner.role)
    (folder / "host.crt").write_text(issued.certificate)
    found = CertificateFile(path=str(folder / "host.crt"), pem=issued.certificate, problem=problem)
    return HostReport.model_construct(certificates=(found,))


def do(folder: Path, answer: HostReport, signer: Authority | None = None) -> renew.Renewal:
    connection = LocalHost(NODE, folder)
    return renew.renew(connection, answer, Authorities(signer or authority(folder)), NOW)  # type: ignore[arg-type]


def test_a_certificate_is_renewed_only_when_it_is_due(folder: Path) -> None:
    assert not do(folder, report(folder, ME, RENEW_DAYS + 5)).renewed
    assert not (folder / "calls").exists()
    before = report(folder, ME, RENEW_DAYS - 5)
    key = (folder / "host.key").read_bytes()
    done = do(folder, before)
    assert done.renewed == ("node-a",)
    assert done.days_left > 360
    certificate = x509.load_pem_x509_certificate((folder / "host.crt").read_bytes())
    assert owner_of(certificate) == ME
    assert certificate.not_valid_after_utc - NOW > timedelta(days=360)
    assert (folder / "host.key").read_bytes() != key
    assert (folder / "host.key").stat().st_mode & 0o777 == 0o600
    assert (folder / "host.crt").stat().st_mode & 0o777 == 0o644
    assert (folder / "calls").read_text() == "try-reload-or-restart fedsim-receiver fedsim-client\n"


def test_a_certificate_whose_installation_was_interrupted_is_replaced(folder: Path) -> None:
    assert do(folder, report(folder, ME, 300, problem="key values mismatch")).renewed == ("node-a",)


@pytest.mark.parametrize("owner", [Identity("server", Role.SERVER), Identity("node-b", Role.CLIENT)])
def test_no_host_gets_a_certificate_for_another_name_or_role(folder: Path, owner: Identity) -> None:
    answer = report(folder, owner, 10)
    with pytest.raises(BadInput, match=f"belongs to {owner}, not to client node-a: run site"):
        do(folder, answer)
    with pytest.raises(BadInput, match="client node-a has no certificate: run site"):
        do(folder, HostReport.model_construct(certificates=()))


def test_without_the_passphrase_it_only_warns_before_anything_is_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSIM_CA_PASSPHRASE", raising=False)
    locked = Authority(folder / "ca", renew.passphrase_in(folder / "ca.passphrase"))
    assert not do(folder, report(folder, ME, 300), locked).renewed
    with pytest.raises(BadInput, match=r"is not in .*ca.passphrase: run site.yml") as caught:
        do(folder, report(folder, ME, 50), locked)
    assert not list(folder.glob("*.new"))
    assert not renew.result(NODE, caught.value, Authorities(locked), NOW).good
    (folder / "ca.passphrase").write_bytes(PASSPHRASE + b"\n")
    assert do(folder, report(folder, ME, 50), locked).renewed


def test_a_host_that_does_not_answer_is_judged_by_what_was_issued(folder: Path) -> None:
    report(folder, ME, 200.5)
    fine = renew.result(NODE, Unavailable("no answer"), Authorities(authority(folder)), NOW)
    assert (fine.text, fine.good) == ("200 days left; it could not be asked: no answer", True)
    assert not renew.result(SERVER, Unavailable("no answer"), Authorities(authority(folder)), NOW).good


def test_what_others_must_renew_is_named(folder: Path) -> None:
    report(folder, Identity("hospital", Role.CLIENT), 40.5)
    report(folder, Identity("clinic", Role.CLIENT), 200)
    report(folder, ME, 40.5)
    (one,) = renew.others(Authorities(authority(folder)), [NODE], NOW)
    assert (one.name, one.text.split(":")[0], one.good) == ("hospital", "40 days left", False)
    web = Authority.make(folder / "web-ca", lambda: PASSPHRASE, name="web", permitted=["server"], days=100)
    assert renew.others(Authorities(authority(folder), web), [], NOW)[-1].name == "the web's authority"
    old = Authority(folder / "ca", lambda: PASSPHRASE, clock=lambda: NOW + timedelta(days=3600))
    assert renew.others(Authorities(old), [NODE], NOW)[-1].name == "the authority"


def test_the_webs_certificate_is_renewed_by_its_own_authority(folder: Path) -> None:
    long_ago = NOW - timedelta(days=300)
    old = Authority.make(folder / "web-ca", lambda: PASSPHRASE, name="w", permitted=["server"], clock=lambda: long_ago)
    files = []
    for stem, signer, owner in (
        ("host", authority(folder), Identity("server", Role.SERVER)),
        ("web", authority(folder), Identity("web", Role.WEB)),
        ("https", old, ("server", HTTPS)),
    ):
        name, use = owner if isinstance(owner, tuple) else (owner.name, owner.role)
        issued = signer.sign(request_for(folder / f"{stem}.key", name)[0], name, use)
        (folder / f"{stem}.crt").write_text(issued.certificate)
        files.append(CertificateFile(path=str(folder / f"{stem}.crt"), pem=issued.certificate, problem=""))
    answer = HostReport.model_construct(certificates=tuple(files))
    web = Authority(folder / "web-ca", lambda: PASSPHRASE, clock=lambda: NOW)
    host = (folder / "host.crt").read_text()
    connection = LocalHost(SERVER, folder)
    done = renew.renew(connection, answer, Authorities(authority(folder), web), NOW)  # type: ignore[arg-type]
    assert done.renewed == ("server",)
    assert (folder / "host.crt").read_text() == host
    certificate = x509.load_pem_x509_certificate((folder / "https.crt").read_bytes())
    assert signed_by(certificate, web.certificate)
    assert certificate.not_valid_after_utc - NOW > timedelta(days=360)
    assert "nginx" in (folder / "calls").read_text()
