"""The role pki on folders of this machine, one for each state that a host can be in."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from fedsim.spool.files import Role
from fedsim.wire.peer import Identity
from fedsim.wire.tls import owner_of, signed_by
from fedsim_fleet.authority import Authority
from fedsim_fleet.certificates import HTTPS, RENEW_DAYS, Use
from fedsim_fleet.request import request_for

PLAYBOOKS = Path(__file__).parents[2] / "ansible"
PROGRAMS = Path(sys.executable).parent
PASSPHRASE = "a passphrase of a test"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0", re.MULTILINE)


def authority(folder: Path, days_ago: int = 0, permitted: Sequence[str] = ()) -> Authority:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    if (folder / "ca.crt").exists():
        return Authority(folder, PASSPHRASE.encode, clock=lambda: at)
    return Authority.make(folder, PASSPHRASE.encode, name="lab", permitted=permitted, clock=lambda: at)


def certify(signer: Authority, folder: Path, name: str, role: Use = Role.CLIENT) -> None:
    folder.mkdir(exist_ok=True)
    request, _ = request_for(folder / "host.key", name)
    (folder / "host.crt").write_text(signer.sign(request, name, role).certificate)


def play(folder: Path, hosts: list[str]) -> dict[str, int]:
    """Run the role; returns how many tasks changed each host."""
    given = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pki_folder": f"{folder}/{{{{ inventory_hostname }}}}",
        "pki_host_ca": str(PROGRAMS / "fedsim-ca"),
        "fedsim_control_bin": str(PROGRAMS),
        "fedsim_secrets": str(folder / "secrets"),
        "fedsim_ca_passphrase": PASSPHRASE,
        "fedsim_https_names": ["pages"],
        "fedsim_identities": [{"file": "host", "name": "{{ inventory_hostname }}", "role": "client"}],
    }
    (folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": {host: {} for host in hosts}}}))
    book = [{"hosts": "all", "roles": ["pki"], "handlers": [{"name": "Reload fedsim", "ansible.builtin.debug": {}}]}]
    (folder / "play.yml").write_text(yaml.safe_dump(book))
    done = subprocess.run(
        [PROGRAMS / "ansible-playbook", "-i", "inventory.yml", "-e", json.dumps(given), "play.yml"],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "ANSIBLE_CONFIG": "",
            "ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles"),
            "ANSIBLE_LIBRARY": str(PLAYBOOKS / "library"),
            "ANSIBLE_ACTION_PLUGINS": str(PLAYBOOKS / "action_plugins"),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {host: int(changed) for host, changed in RECAP.findall(done.stdout)}


def needs(folder: Path, name: str, role_name: str = "client", web_names: Sequence[str] = ("pages",)) -> bool:
    """Whether the host in this folder gets a new certificate, by the role's own files."""
    role = PLAYBOOKS / "roles" / "pki"
    spec = importlib.util.spec_from_file_location("role_pki", role / "filter_plugins" / "certificates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = [sys.executable, role / "files" / "certificates.py", folder / name, "host"]
    report = (
        "a line of a shell's profile\n" + subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    identity = {"file": "host", "name": name, "role": role_name}
    lab, web = folder / "secrets" / "ca", folder / "secrets" / "web-ca"
    authority(web, permitted=["pages"])
    return bool(module.identities_to_certify([identity], report, lab, web, list(web_names)))


def renamed(lab: Authority, host: Path) -> None:
    certify(lab, host, "another-name")


def with_another_role(lab: Authority, host: Path) -> None:
    certify(lab, host, host.name, Role.SERVER)


def of_another_authority(_: Authority, host: Path) -> None:
    certify(authority(host.with_name("another")), host, host.name)


def due(lab: Authority, host: Path) -> None:
    certify(authority(lab.folder, days_ago=366 - RENEW_DAYS), host, host.name)


def with_another_key(lab: Authority, host: Path) -> None:
    certify(lab, host, host.name)
    (host / "host.key").unlink()
    request_for(host / "host.key", host.name)


def damaged(lab: Authority, host: Path) -> None:
    certify(lab, host, host.name)
    (host / "host.crt").write_text("-----BEGIN NOTHING-----")


@pytest.mark.parametrize("spoil", [renamed, with_another_role, of_another_authority, due, with_another_key, damaged])
def test_a_certificate_that_does_not_fit_is_replaced(spoil: Callable[[Authority, Path], None], tmp_path: Path) -> None:
    lab = authority(tmp_path / "secrets" / "ca")
    certify(lab, tmp_path / "good", "good")
    assert not needs(tmp_path, "good")
    spoil(lab, tmp_path / "host")
    assert needs(tmp_path, "host")


def test_the_webs_certificate_comes_from_an_authority_of_its_own(tmp_path: Path) -> None:
    lab = authority(tmp_path / "secrets" / "ca")
    web = authority(tmp_path / "secrets" / "web-ca", permitted=["pages"])
    certify(lab, tmp_path / "pages", "pages", Role.SERVER)  # as in a lab that is older
    assert needs(tmp_path, "pages", "https")
    (tmp_path / "pages" / "host.key").unlink()
    certify(web, tmp_path / "pages", "pages", HTTPS)
    assert not needs(tmp_path, "pages", "https")
    with pytest.raises(Exception, match=r"permits pages, and the web has the names pages, more .* move .*web-ca away"):
        needs(tmp_path, "pages", "https", ["pages", "more"])


@pytest.mark.long
def test_the_role_replaces_what_does_not_fit_and_keeps_the_rest(tmp_path: Path) -> None:
    lab = authority(tmp_path / "secrets" / "ca")
    certify(lab, tmp_path / "good", "good")
    certify(lab, tmp_path / "renamed", "node-a")
    (tmp_path / "bare").mkdir()
    stale, _ = request_for(tmp_path / "bare" / "host.key.new", "node-a")  # of an interrupted run, under another name
    lab.sign(stale, "node-a", Role.CLIENT)
    kept = (tmp_path / "good" / "host.crt").read_text()
    changed = play(tmp_path, ["good", "renamed", "bare"])
    assert changed["good"] == 1, "only the authority's certificate and its list were copied"
    assert (tmp_path / "good" / "host.crt").read_text() == kept
    for host in ("renamed", "bare"):
        certificate = x509.load_pem_x509_certificate((tmp_path / host / "host.crt").read_bytes())
        assert owner_of(certificate) == Identity(host, Role.CLIENT)
        assert signed_by(certificate, lab.certificate)
        assert not needs(tmp_path, host)
        assert not list((tmp_path / host).glob("*.new"))
