"""`fedsim-ca` from end to end, as an owner of a lab types it: exit codes, documents, pipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509

from fedsim.errors import EX_DATA, EX_NOINPUT, EX_UNAVAILABLE, EX_USAGE
from fedsim_fleet.ca import main

PASSPHRASE = "a passphrase for tests"


def test_from_a_new_authority_to_a_revoked_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIM_CA_PASSPHRASE", PASSPHRASE)

    def run(*arguments: str) -> str:
        assert main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "Created the authority" in run("init")
    run("request", "node-a", "--key", "host.key", "--out", "host.csr")
    run("sign", "host.csr", "--name", "node-a", "--role", "client", "--out", "host.crt")
    certificate = x509.load_pem_x509_certificate((tmp_path / "host.crt").read_bytes())
    listed = json.loads(run("list", "--json"))
    (item,) = listed["certificates"]
    assert (item["name"], item["role"], item["serial"]) == ("node-a", "client", f"{certificate.serial_number:x}")
    assert item["days_left"] == 364
    assert "node-a" in run("list")
    assert json.loads(run("show", "node-a", "--json"))["state"] == "valid"
    assert "BEGIN CERTIFICATE" in run("show")
    renewed = json.loads(run("renew", "node-a", "--days", "20", "--json"))
    assert renewed["days_left"] == 19
    (revoked,) = json.loads(run("revoke", "node-a", "--keep-newest", "--json"))["revoked"]
    assert revoked["serial"] == item["serial"]
    crl = x509.load_pem_x509_crl(run("crl").encode())
    assert [entry.serial_number for entry in crl] == [certificate.serial_number]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("list", "--folder", "nowhere"), EX_NOINPUT, "create one with: fedsim-ca init"),
        (("show", "node-x"), EX_NOINPUT, "node-x has no certificate"),
        (("sign", "absent.csr", "--name", "a", "--role", "client"), EX_NOINPUT, "absent.csr cannot be read"),
        (("sign", "text", "--name", "a", "--role", "client"), EX_DATA, "not a signing request"),
        (("sign", "text", "--name", "a", "--role", "king"), EX_USAGE, "--role"),
        (("init",), EX_DATA, "already"),
        (("request", "a", "--key", "no/such/folder/key"), EX_UNAVAILABLE, "cannot be created"),
    ],
)
def test_every_failure_says_what_happened_and_ends_with_its_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIM_CA_PASSPHRASE", PASSPHRASE)
    main(["init"])
    (tmp_path / "text").write_text("nothing of the kind", encoding="utf-8")
    assert main(arguments) == code
    assert told in capsys.readouterr().err


def test_without_a_passphrase_it_says_where_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_CA_PASSPHRASE", raising=False)
    assert main(["init"]) == EX_DATA
    told = capsys.readouterr().err
    assert "--passphrase-file" in told
    assert "FEDSIM_CA_PASSPHRASE" in told
