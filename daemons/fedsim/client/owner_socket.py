"""The Unix socket of a node's owner: which tasks wait for approval, what to decide about them, and the audit log.

One request and one answer on each connection, each a line of JSON. The modes of the socket and of its folder decide who
may connect, and the kernel reports who it is (`SO_PEERCRED`). A few threads serve the connections, so that a slow one
does not hold up the daemon; a decision is passed to the daemon's loop, which answers when it is durable.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fedsim.client.approvals import PendingTask
from fedsim.client.audit_log import OwnerDecision
from fedsim.errors import BadInput, Unavailable
from fedsim.log import get_logger
from fedsim.messages import Message, Uid
from fedsim.problems import problems_text
from fedsim.spool.hash_chain import ChainReader
from fedsim.text import one_line

MAX_REQUEST_BYTES: Final = 64 * 1024
MAX_REASON: Final = 500
MAX_AUDIT_LINES: Final = 200
SOCKET_MODE: Final = 0o660
_SECONDS: Final = 10.0
_DECISION_SECONDS: Final = 60.0
_MOST_AT_ONCE: Final = 8


class PendingQuery(Message):
    """Which tasks wait for approval?"""

    do: Literal["pending"] = "pending"


class AuditQuery(Message):
    """The lines of the audit log before line `before` (None: the newest), newest first."""

    do: Literal["audit"] = "audit"
    before: int | None = Field(None, ge=1)
    limit: int = Field(50, ge=1, le=MAX_AUDIT_LINES)


class DecisionRequest(Message):
    """Approve or refuse exactly the task with this digest."""

    do: Literal["decide"] = "decide"
    uid: Uid
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    approve: bool
    reason: Annotated[str, Field(max_length=20_000)] = ""


OwnerRequest = PendingQuery | AuditQuery | DecisionRequest
_REQUESTS: TypeAdapter[OwnerRequest] = TypeAdapter(Annotated[OwnerRequest, Field(discriminator="do")])


@dataclass(frozen=True)
class Order:
    """A decision of the owner for the daemon; `answer` becomes why it was not possible, empty if it was."""

    uid: str
    digest: str
    decision: OwnerDecision
    answer: Future[str]


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the path that fits into a socket's address, which has 108 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, request: OwnerRequest) -> dict[str, Any]:
    """Send a request to the daemon at `path`; returns its answer.

    Raises:
        Unavailable: no daemon answers there, or this user may not connect.
        BadInput: the daemon refuses the request.
    """
    try:
        with _short(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_DECISION_SECONDS + _SECONDS)
            connection.connect(name)
            connection.sendall(request.model_dump_json().encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                answer = json.loads(file.read())
    except PermissionError as error:
        raise Unavailable(f"this user may not connect to {path}: they must be in the group that owns it") from error
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"no node answers on {path} ({getattr(error, 'strerror', None) or error}): does fedsim-client run?"
        ) from error
    if answer.get("error"):
        raise BadInput(str(answer["error"]))
    return dict(answer)


def _remove_unserved(name: str) -> None:
    """Remove the socket of a process that has ended; `OSError` if one listens on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(name) == 0:
            raise OSError(errno.EADDRINUSE, "another process listens on it")
    Path(name).unlink(missing_ok=True)


class OwnerSocket:
    """Serves the socket at `path`. The daemon sets `pending`, and watches for `orders`."""

    def __init__(self, path: Path, node: str, audit_log: Path) -> None:
        self.pending: Sequence[PendingTask] = ()
        self._path = path
        self._node = node
        self._audit_log = ChainReader(audit_log)
        self._orders: deque[Order] = deque()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def fileno(self) -> int:
        """Readable when there are orders."""
        return self._eventfd

    def open(self) -> None:
        """Listen; replaces the socket of a process that has ended."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(self._path) as name:
                _remove_unserved(name)
                self._listener.bind(name)
            self._path.chmod(SOCKET_MODE)
            self._listener.listen(_MOST_AT_ONCE)
        except OSError as error:
            self._listener.close()
            raise Unavailable(f"owner_socket: {self._path} cannot be made: {error.strerror}") from error
        threading.Thread(target=self._accept, name="owner-socket", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        os.close(self._eventfd)

    def orders(self) -> list[Order]:
        """The decisions that have arrived since the last call."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        found = []
        while self._orders:
            found.append(self._orders.popleft())
        return found

    # ------------------------------------------------------------ in threads

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="owner", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                connection.settimeout(_SECONDS)
                with connection.makefile("rb") as file:
                    line = file.readline(MAX_REQUEST_BYTES)
                connection.sendall(json.dumps(self._answer(line, user_of(connection))).encode())
        finally:
            self._places.release()

    def _answer(self, line: bytes, user: str) -> dict[str, Any]:
        try:
            request = _REQUESTS.validate_json(line)
        except ValidationError as error:
            return {"error": f"the request is not understood: {problems_text(error)}"}
        match request:
            case PendingQuery():
                return {"node": self._node, "pending": [_shown(task) for task in self.pending]}
            case AuditQuery(before=before, limit=limit):
                return self._audit(before, limit)
            case DecisionRequest():
                return self._decide(request, user)

    def _audit(self, before: int | None, limit: int) -> dict[str, Any]:
        lines, total, problems = self._audit_log.read(before, limit)
        chosen = [{"line": number, **_parsed(line)} for number, line in lines]
        return {"node": self._node, "total": total, "problems": problems[:20], "lines": chosen}

    def _decide(self, request: DecisionRequest, user: str) -> dict[str, Any]:
        decision = OwnerDecision(request.approve, user, one_line(request.reason, MAX_REASON))
        order = Order(request.uid, request.digest, decision, Future())
        self._orders.append(order)
        try:
            os.eventfd_write(self._eventfd, 1)
            return {"error": order.answer.result(_DECISION_SECONDS)}
        except TimeoutError:
            get_logger().warning("owner_waits", problem="a decision was not recorded in time")
            return {"error": "the node did not record the decision in time: look whether the task still waits"}
        except OSError:
            return {"error": "the node is ending: try again"}


def user_of(connection: socket.socket) -> str:
    """The Unix user at the other end, as the kernel knows them."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {"kind": "damaged"}


def _shown(task: PendingTask) -> dict[str, Any]:
    assignment = task.assignment.model_dump(mode="json", exclude={"begin"})
    return {"digest": task.digest, "since": task.since, "assignment": assignment}
