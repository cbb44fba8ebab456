"""The queue of a peer, and the lock that decides which process sends what is queued."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedsim.errors import BadInput
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Spool
from fedsim.spool.peer_queue import (
    PeerQueue,
    QueuedFile,
    QueueLock,
    empty_queues,
    read_entry,
    record_sent,
    sent_entries,
)

TASK = "7" * 32
PATIENCE = 30.0
HOLD = """
import sys
from pathlib import Path
from fedsim.spool.peer_queue import PeerQueue, QueueLock
QueueLock(PeerQueue(Path(sys.argv[1]), "node-1")).acquire(lambda: print("held", flush=True))
sys.stdin.read()
"""


@pytest.fixture
def queue(tmp_path: Path) -> PeerQueue:
    Spool(tmp_path).open()
    return PeerQueue(tmp_path, "node-1")


def stop(number: int = 7) -> QueuedFile:
    return QueuedFile(id=FileId(kind=Kind.STOP, task=f"{number:032x}"), content="{}")


def test_files_are_queued_in_order_and_read_as_they_were(queue: PeerQueue, tmp_path: Path) -> None:
    model = QueuedFile(
        id=FileId(kind=Kind.GLOBALPARAM, task=TASK, round=1), path=tmp_path / "m.npy", meta={"a": 1}, digest="0" * 64
    )
    entries = [queue.put(model), *(queue.put(stop(number)) for number in range(20))]
    assert queue.entries() == entries
    assert read_entry(entries[0]) == model
    assert read_entry(entries[-1]) == stop(19)


def test_what_was_sent_is_reported_and_no_longer_queued(queue: PeerQueue, tmp_path: Path) -> None:
    entry = queue.put(stop())
    record_sent(tmp_path, entry, stop())
    assert (queue.entries(), [path.name for path in sent_entries(tmp_path)]) == ([], [entry.name])
    assert read_entry(entry) is None


def test_a_daemon_that_starts_empties_queues_and_outcomes(queue: PeerQueue, tmp_path: Path) -> None:
    record_sent(tmp_path, queue.put(stop(1)), stop(1))
    queue.put(stop(2))
    empty_queues(tmp_path)
    assert (queue.entries(), sent_entries(tmp_path)) == ([], [])


def test_an_entry_that_cannot_be_read_is_named(queue: PeerQueue) -> None:
    entry = queue.put(stop())
    entry.write_text("{")
    with pytest.raises(BadInput, match=entry.name):
        read_entry(entry)


def test_one_holder_at_a_time_sends_and_the_next_follows_at_once(queue: PeerQueue) -> None:
    first, second, third = QueueLock(queue), QueueLock(queue), QueueLock(queue)
    held, waited, late = threading.Event(), threading.Event(), threading.Event()
    first.acquire(held.set)
    assert held.is_set()
    second.acquire(waited.set)
    third.acquire(late.set)
    assert not waited.wait(0.05)
    third.release()  # its connection ended before its turn came
    first.release()
    assert waited.wait(PATIENCE)
    second.release()
    first.acquire(held.set)
    assert not late.is_set()
    first.release()


def test_the_lock_of_a_process_that_is_killed_is_free(queue: PeerQueue, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        lock, acquired = QueueLock(queue), threading.Event()
        lock.acquire(acquired.set)
        assert not acquired.wait(0.05)
        other.kill()
        assert acquired.wait(PATIENCE)
        lock.release()
