"""A large file by rsync and by scp over loopback, in turn with fedsim's receiver.

rsync speaks to a daemon of its own, without encryption; scp to an sshd of its own, on a high port of loopback. Neither
syncs the file, which fedsim does.
"""

from __future__ import annotations

import getpass
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from environments import await_port, program
from harness.measure import Options, bench_folder, interleaved, timed
from harness.receivers import Receivers
from harness.results import NotHereError, Row, compare, ratio_at_least
from transfer_support import model_file

from fedsim.testing.ports import free_port

MIB = 1 << 20
SIZE, QUICK_SIZE = 1024 * MIB, 64 * MIB
BARS = {"rsync": 1.3, "scp": 4.0}
RSYNC = """use chroot = no
address = 127.0.0.1
port = {port}
pid file = {folder}/rsyncd.pid
[bench]
path = {folder}/rsync
read only = no
{ids}"""
SSHD = """ListenAddress 127.0.0.1:{port}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    size = QUICK_SIZE if options.quick else SIZE
    with bench_folder() as folder:
        source = folder / "m.npy"
        digest = model_file(source, size // 4)
        with Receivers(folder / "ours") as ours:

            def fedsim() -> float:
                ours.forget()
                return ours.send(source, digest).seconds

            for name, server in (("rsync", rsync), ("scp", scp)):
                try:
                    with server(folder, source) as copy:
                        found = interleaved({"ours": fedsim, name: lambda: timed(copy)}, options.repeats)
                except NotHereError as error:
                    sys.stderr.write(f"  {name}: {error}\n")
                    continue
                rates = {way: [size / seconds for seconds in values] for way, values in found.items()}
                what, bar = f"receiver, {size // MIB} MiB, plain, next to {name}", ratio_at_least(BARS[name])
                yield compare(what, rates["ours"], rates[name], against=name, unit="B/s", bar=bar)


@contextmanager
def rsync(folder: Path, source: Path) -> Iterator[Callable[[], None]]:
    """A daemon of rsync; what is yielded copies the file to it."""
    command, port = program("rsync", "rsync"), free_port()
    target = folder / "rsync"
    target.mkdir()
    ids = "uid = root\ngid = root\n" if getpass.getuser() == "root" else ""
    config = folder / "rsyncd.conf"
    config.write_text(RSYNC.format(port=port, folder=folder, ids=ids), encoding="utf-8")

    def copy() -> None:
        (target / source.name).unlink(missing_ok=True)
        subprocess.run([command, "--whole-file", str(source), f"rsync://127.0.0.1:{port}/bench/"], check=True)

    with running([command, "--daemon", "--no-detach", f"--config={config}"], port):
        yield copy


@contextmanager
def scp(folder: Path, source: Path) -> Iterator[Callable[[], None]]:
    """An sshd; what is yielded copies the file through it."""
    sshd, copier, port = program("sshd", "openssh-server"), program("scp", "openssh-client"), free_port()
    key, target = folder / "key", folder / "scp.npy"
    keygen = [program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(keygen, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd confines itself; it does not start without
    config = folder / "sshd_config"
    config.write_text(SSHD.format(port=port, folder=folder), encoding="utf-8")
    options = ["-q", "-P", str(port), "-i", str(key), "-o", "BatchMode=yes"]
    known = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]

    def copy() -> None:
        target.unlink(missing_ok=True)
        subprocess.run([copier, *options, *known, str(source), f"127.0.0.1:{target}"], check=True)

    with running([*with_user("sshd", folder), sshd, "-D", "-e", "-f", str(config)], port):
        yield copy


def with_user(name: str, folder: Path) -> list[str]:
    """What runs a command so that it finds a user of this name, where this machine has none: no account is made."""
    users = Path("/etc/passwd").read_text(encoding="utf-8")
    if getpass.getuser() != "root" or re.search(rf"^{name}:", users, re.MULTILINE):
        return []
    own = folder / "passwd"
    own.write_text(f"{users}{name}:x:65534:65534::/run/sshd:/usr/sbin/nologin\n", encoding="utf-8")
    script = f'mount --bind "{own}" /etc/passwd && exec "$@"'
    return [program("unshare", "util-linux"), "--mount", "sh", "-c", script, "sh"]


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A server process, from when its port answers."""
    with subprocess.Popen(command) as process:
        try:
            await_port(process, port)
            yield
        finally:
            process.terminate()
