"""How programs end as processes: output that cannot be written, terminals of any encoding, odd environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import EX_CONFIG, EX_IO, EX_OK, EX_PIPE

BIN = Path(sys.executable).parent


def _python(code: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    program = f"import sys, click; from fedsim.command import run_command\n{code}"
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=False, timeout=60, **options)


PRINT = "sys.exit(run_command(click.Command('it', callback=lambda: print('Renée – 数', 'x' * {size})), 'it', []))"


@pytest.mark.parametrize("encoding", ["iso-8859-1", "ascii", "gb18030", "utf-8"])
def test_a_terminal_of_any_encoding_gets_what_it_can_show(encoding: str) -> None:
    run = _python(PRINT.format(size=1), stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (run.returncode, run.stderr) == (EX_OK, b"")
    assert run.stdout.startswith("Ren".encode(encoding))


@pytest.mark.parametrize("size", [1, 100_000])
def test_output_that_cannot_be_written_is_an_exit_code_of_its_own(size: int) -> None:
    with Path("/dev/full").open("wb") as full:
        run = _python(PRINT.format(size=size), stdout=full)
    assert run.returncode == EX_IO
    assert run.stderr == b"Error: Standard output cannot be written: No space left on device\n"
    closed = _python(PRINT.format(size=size), preexec_fn=lambda: os.close(1))
    assert closed.returncode == EX_IO
    assert closed.stderr == b"Error: Standard output is closed: what the command printed is lost\n"


def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    run = _python(PRINT.format(size=100_000), stdout=write)
    os.close(write)
    assert (run.returncode, run.stderr) == (EX_PIPE, b"")


def _login(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name != "HOME"}
    return subprocess.run(
        [BIN / "fedsim", "login", "--url", "https://lab.example.invalid", "--name", "ada", "--password-stdin"],
        input="pw\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=folder,
        env={**kept, "HOME": str(folder), **environment},
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ALL_PROXY": "socks5://ada:s3cret@127.0.0.1:1080"}, "ALL_PROXY in the environment cannot be used"),
        ({"HTTPS_PROXY": "nonsense://x:y:z"}, "HTTPS_PROXY in the environment cannot be used"),
        ({"https_proxy": "http://[::1"}, "https_proxy in the environment cannot be used"),
        ({"SSL_CERT_FILE": "/no/such/file"}, "cannot be used:\n  its certificates cannot be read"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    run = _login(tmp_path, **environment)
    assert run.returncode == EX_CONFIG
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert "s3cret" not in run.stderr


def test_without_a_home_folder_no_token_is_written_to_the_present_one(tmp_path: Path) -> None:
    run = subprocess.run(
        [BIN / "fedsim", "tasks"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "HOME": "", "XDG_CONFIG_HOME": ""},
    )
    assert (run.returncode, list(tmp_path.iterdir())) == (EX_CONFIG, [])
    assert "set HOME, or name a file with --token-file" in run.stderr
