"""Two hosts with one name: the second is refused, the first is warned, and a copy of a whole machine is noticed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedsim.client.announcing import host_name
from fedsim.errors import Refused
from fedsim.inbox.same_name import SameName
from fedsim.messages import EngineInfo, Hello
from fedsim.spool.instance import Instance, next_instance
from fedsim.wire.peer import Peer


def hello(path: Path, instance: Instance, host: str) -> Path:
    announced = Hello(
        node="node-a",
        version="1",
        sent_at=0,
        clients=1,
        engine=EngineInfo(),
        instance=instance.id,
        start=instance.start,
        session=instance.session,
        host=host,
    )
    path.write_text(announced.model_dump_json())
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where the accepted announcement is."""
    return tmp_path / "node-a.json"


def test_the_second_of_two_hosts_is_refused_until_the_first_is_gone_and_the_first_is_warned_once(
    tmp_path: Path, there: Path
) -> None:
    names = SameName()
    first, second = Instance("a" * 32, 1, "1" * 32), Instance("b" * 32, 7, "2" * 32)
    coming = hello(tmp_path / "coming", second, "clone (192.0.2.9)")
    names.check(coming, there)
    hello(there, first, "original (192.0.2.7)")
    again = hello(tmp_path / "again", first, "original (192.0.2.7)")
    names.check(again, there)
    both = r"node-a: original \(192.0.2.7\) 0 s ago, and now clone \(192.0.2.9\); stop one"
    with pytest.raises(Refused, match=both):
        names.check(coming, there)
    with pytest.raises(Refused, match=r"original \(192.0.2.7\), and clone \(192.0.2.9\), which is refused"):
        names.check(again, there)
    for _ in range(2):
        names.check(again, there)
        with pytest.raises(Refused, match="and now clone"):
            names.check(coming, there)
    gone = time.time() - 31
    os.utime(there, (gone, gone))
    names.check(coming, there)
    there.write_bytes(b"damaged")
    names.check(coming, there)


def test_a_machine_and_its_copy_are_two_hosts_and_a_restart_is_one(tmp_path: Path, there: Path) -> None:
    names, spool, copy = SameName(), tmp_path / "spool", tmp_path / "copy"
    for folder in (spool, copy):
        folder.mkdir()
    next_instance(spool)
    (copy / "instance").write_bytes((spool / "instance").read_bytes())
    original, clone = next_instance(spool), next_instance(copy)
    assert original.id == clone.id
    hello(there, original, "original")
    coming = tmp_path / "coming"
    with pytest.raises(Refused, match="two hosts"):
        names.check(hello(coming, clone, "clone"), there)
    restarted = next_instance(spool)
    names = SameName()
    names.check(hello(coming, restarted, "original"), there)
    hello(there, restarted, "original")
    with pytest.raises(Refused, match="two hosts"):
        names.check(hello(coming, clone, "clone"), there)


def test_a_spool_keeps_its_identity_and_counts_its_starts(tmp_path: Path) -> None:
    first, second = next_instance(tmp_path), next_instance(tmp_path)
    assert (second.id, second.start) == (first.id, 2)
    assert second.session != first.session
    (tmp_path / "instance").write_bytes(b"damaged")
    assert next_instance(tmp_path).id != first.id


def test_a_host_is_named_with_the_address_from_which_it_reaches_the_server() -> None:
    assert host_name(Peer("server", "127.0.0.1", 9001)).endswith(" (127.0.0.1)")
