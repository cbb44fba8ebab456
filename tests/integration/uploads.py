"""A node that uploads to a receiver in a process of its own: how long it takes, what arrives."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

import yaml
from tls_support import Pki
from transfer_support import NODE, RECEIVER, TASK, local_id, meta_of, model_file, server_config, want_all

from fedsim.spool.files import Role
from fedsim.spool.layout import Spool
from fedsim.testing.ports import free_port
from fedsim.wire import Peer
from fedsim.wire.sender import Sender


class Uploads:
    """One sender and one receiver.

    Args:
        folder: for their files.
        files: of one turn.
        mebibytes: of each file.
        tls: whether the connection is encrypted.
    """

    def __init__(self, folder: Path, files: int, mebibytes: int, *, tls: bool) -> None:
        self._files = files
        self.source = folder / "m.npy"
        self._digest = model_file(self.source, mebibytes << 18)
        given = server_config(folder).model_dump(mode="json", exclude_none=True)
        self.credentials = None
        if tls:
            pki = Pki(folder)
            self.credentials = pki.credentials(NODE.name, NODE.role)
            given["tls"] = pki.tls("server", Role.SERVER).model_dump(mode="json", exclude_none=True)
        self.port = given["listen"]["port"] = free_port()
        path = folder / "receiver.yml"
        path.write_text(yaml.safe_dump(given))
        self._spool = Path(given["spool"])
        want_all(Spool(self._spool).open())
        self._process = subprocess.Popen([*RECEIVER, "--config", str(path)], stderr=subprocess.DEVNULL)
        self.peer = Peer("server", "127.0.0.1", self.port)
        self._sender = Sender(NODE, credentials=self.credentials).open()
        self.sent = self.arrived = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._process.terminate()
        self._process.wait()

    def seconds(self) -> float:
        """Upload the files one after the other."""
        started = time.perf_counter()
        for chunk in range(self._files):
            file_id = local_id(chunk)
            outcome = self._sender.send_and_wait(
                self.peer, file_id, self.source, digest=self._digest, meta=meta_of(file_id), give_up_after=60
            )
            self.sent += 1
            self.arrived += outcome.delivered
        seconds = time.perf_counter() - started
        shutil.rmtree(self._spool / "localparam" / TASK, ignore_errors=True)
        return seconds
