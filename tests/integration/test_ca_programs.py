"""The program fedsim-ca in pipes: a request comes by standard input, a certificate goes by standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cryptography import x509

from fedsim.errors import EX_DATA

PROGRAM = Path(sys.executable).with_name("fedsim-ca")
PASSPHRASE = "a passphrase for tests"


def run(folder: Path, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FEDSIM")}
    done = subprocess.run(
        [PROGRAM, *arguments], cwd=folder, input=stdin, env=environment, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr.decode()
    return (done.stderr if code else done.stdout).decode()


def test_a_request_may_come_and_a_certificate_go_through_pipes(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text(PASSPHRASE + "\n", encoding="utf-8")
    file = ("--passphrase-file", "pass")
    run(tmp_path, "init", *file)
    request = run(tmp_path, "request", "web", "--key", "web.key").encode()
    signed = run(tmp_path, "sign", "-", "--name", "web", "--role", "web", *file, stdin=request)
    assert x509.load_pem_x509_certificate(signed.encode()).subject.rfc4514_string() == "CN=web"


def test_the_requests_of_several_hosts_are_signed_at_once(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text(PASSPHRASE + "\n", encoding="utf-8")
    file = ("--passphrase-file", "pass")
    run(tmp_path, "init", *file)
    requests = [
        {"name": name, "role": role, "request": run(tmp_path, "request", "another", "--key", f"{name}.key")}
        for name, role in (("server", "server"), ("node-a", "client"))
    ]
    signed = json.loads(run(tmp_path, "sign-all", *file, stdin=json.dumps(requests).encode()))["certificates"]
    assert [(item["name"], item["role"]) for item in signed] == [("server", "server"), ("node-a", "client")]
    for item in signed:
        certificate = x509.load_pem_x509_certificate(item["certificate"].encode())
        assert certificate.subject.rfc4514_string() == f"CN={item['name']}"
    listed = json.loads(run(tmp_path, "list", "--json"))["certificates"]
    assert [item["serial"] for item in listed] == [item["serial"] for item in signed]
    requests[0]["role"] = "king"
    assert "role" in run(tmp_path, "sign-all", *file, stdin=json.dumps(requests).encode(), code=EX_DATA)
