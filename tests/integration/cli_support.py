"""What tests of the command share: the real web on a real socket, and a terminal in which `fedsim` runs."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from blake3 import blake3
from structlog.testing import capture_logs
from web_support import PASSWORD, Site, make_site

from fedsim.cli.main import main
from fedsim.store.records import Checkpoint, Task, TaskState, UserRole
from fedsim.web import accounts


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False  # closing waits for every answer
    allow_reuse_address = True


@dataclass
class Web:
    """The site behind a socket on loopback. `before` is called with each path that is asked for."""

    site: Site
    port: int = 0
    before: Callable[[str], None] | None = None
    asked: list[str] = field(default_factory=list)
    _server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = make_server("127.0.0.1", self.port, self._answer, _Server, _Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.asked.append(path)
        if self.before is not None:
            self.before(path)
        answer: Iterable[bytes] = self.site.app(environ, start_response)
        return answer

    def token(self, name: str, *, admin: bool = False) -> str:
        """A new user's bearer token."""
        user = accounts.create_admin(self.site.store, name, PASSWORD, now=self.site.now)
        if not admin:
            self.site.store.users.set_role(user.id, UserRole.USER)
        secret, _ = accounts.make_token(self.site.store, user, "a test", now=self.site.now)
        return secret

    def save_checkpoint(self, task: Task, number: int, content: bytes) -> Checkpoint:
        """A checkpoint as the server leaves it: the file, the JSON beside it, the row."""
        path = self.site.config.checkpoints / f"task-{task.number}" / f"round-{number:04d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.with_suffix(".json").write_text(json.dumps({"round": number}), encoding="utf-8")
        relative = path.relative_to(self.site.config.checkpoints).as_posix()
        checkpoint = Checkpoint(number, relative, blake3(content).hexdigest(), len(content), self.site.now)
        self.site.store.checkpoints.record(task.uid, checkpoint)
        return checkpoint

    def finish(self, task: Task, state: TaskState = TaskState.COMPLETED, reason: str = "") -> None:
        assert self.site.store.tasks.move(task.uid, state, reason=reason, now=self.site.now)


@contextmanager
def serving(folder: Path, **config: Any) -> Iterator[Web]:
    """A web in `folder`, listening."""
    web = Web(make_site(folder, **config))
    web.start()
    try:
        with capture_logs():  # the web logs in this process, where only the command may print
            yield web
    finally:
        web.stop()
        web.site.store.close()


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


class Terminal:
    """Runs command lines as a shell's user would, without a terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        for name in ("FEDSIM_URL", "FEDSIM_TOKEN_FILE", "FEDSIM_INSECURE_PLAINTEXT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
        self.token_file = folder / "home" / "fedsim" / "token"

    def use(self, url: str, token: str) -> None:
        """Be logged in."""
        self.token_file.parent.mkdir(parents=True, exist_ok=True)
        self.token_file.write_text(f"{url}\n{token}\n", encoding="utf-8")
        self.token_file.chmod(0o600)

    def run(self, *arguments: object, typed: str = "") -> Result:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = self._capsys.readouterr()
        return Result(code, printed.out, printed.err)
