"""Receivers of fedsim in processes of their own, and a sender in this one, for benchmarks of transfers."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import yaml
from tls_support import Pki
from transfer_support import RECEIVER, SERVER, TASK, global_id, node_config, stop_body, stop_id, want_all

from fedsim.config import TlsConfig
from fedsim.spool.files import FileId, Role
from fedsim.spool.layout import Spool
from fedsim.testing.ports import free_port
from fedsim.wire import Peer, Sender
from fedsim.wire.sender import Outcome

PATIENCE_SECONDS = 300.0


class Receivers:
    """This many nodes with a receiver each, and the server's sender; as a context manager it starts and stops them.

    Args:
        folder: for configuration and spools.
        count: of nodes.
        tls: whether connections are encrypted.
    """

    def __init__(self, folder: Path, count: int = 1, *, tls: bool = False) -> None:
        self._stack = ExitStack()
        self._spools: list[Path] = []
        self.peers: list[Peer] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []
        self.tls: TlsConfig | None = None
        self._folder = folder
        self._count = count
        self._encrypted = tls

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        pki = Pki(self._folder) if self._encrypted else None
        for number in range(self._count):
            self._start(number, pki)
        credentials = None if pki is None else pki.credentials(SERVER.name, SERVER.role)
        self.sender = self._stack.enter_context(Sender(SERVER, credentials=credentials))
        for number in range(self._count):  # connects, and waits until the receiver is there
            self.small(number, number=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, number: int, pki: Pki | None) -> None:
        name = f"node-{number + 1}"
        here = self._folder / name
        here.mkdir(exist_ok=True)
        given = node_config(here, name=name).model_dump(mode="json", exclude_none=True)
        given["listen"]["port"] = free_port()
        given["limits"]["max_share_per_peer"] = 1.0  # one peer sends all that there is
        if pki is not None:
            self.tls = pki.tls(name, Role.CLIENT)
            given["tls"] = self.tls.model_dump(mode="json", exclude_none=True)
        path = here / "receiver.yml"
        path.write_text(yaml.safe_dump(given), encoding="utf-8")
        want_all(Spool(Path(given["spool"])).open())
        process = self._stack.enter_context(
            subprocess.Popen([*RECEIVER, "--config", str(path)], stderr=subprocess.DEVNULL)
        )
        self._stack.callback(process.terminate)
        self.processes.append(process)
        self._spools.append(Path(given["spool"]))
        self.ports.append(given["listen"]["port"])
        self.peers.append(Peer(name, "127.0.0.1", given["listen"]["port"]))

    def small(self, node: int, number: int) -> float:
        """Send an almost empty file over the open connection; returns its seconds, fsync included."""
        uid = f"{number:032x}"
        return self.sender.send_and_wait(
            self.peers[node], stop_id(uid), stop_body(uid), give_up_after=PATIENCE_SECONDS
        ).seconds

    def send(self, source: Path, digest: str, *, node: int = 0, peer: Peer | None = None) -> Outcome:
        """Send a global model and wait for its end."""
        return self.sender.send_and_wait(
            peer or self.peers[node], self._model, source, digest=digest, give_up_after=PATIENCE_SECONDS
        )

    def send_to_all(self, source: Path, digest: str) -> float:
        """Send a global model to all nodes at once; returns the seconds until the last of them has it."""
        with ThreadPoolExecutor(self._count) as pool:
            started = time.perf_counter()
            for done in [pool.submit(self.send, source, digest, node=node) for node in range(self._count)]:
                done.result()
            return time.perf_counter() - started

    @property
    def _model(self) -> FileId:
        return global_id(1)

    def forget(self) -> None:
        """Remove what has arrived, so that the same file can be sent again."""
        for spool in self._spools:
            shutil.rmtree(spool / "globalparam" / TASK, ignore_errors=True)
