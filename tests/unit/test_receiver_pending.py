"""Connections of strangers: bounded, and each flood replaces its own."""

from __future__ import annotations

from fedsim.receiver.pending import PendingConnections


def test_the_oldest_of_the_largest_network_makes_room() -> None:
    pending: PendingConnections[str] = PendingConnections()
    for number in range(3):
        assert pending.add(f"flood-{number}", "192.0.2.1", 5) is None
    assert pending.add("peer", "192.0.2.7", 5) is None
    assert pending.add("other", "198.51.100.1", 5) is None
    assert [pending.add(f"flood-{number}", "192.0.2.1", 5) for number in (3, 4)] == ["flood-0", "flood-1"]
    assert len(pending) == 5
    assert "peer" in pending
    assert "flood-0" not in pending


def test_one_that_identified_itself_or_ended_leaves_its_place() -> None:
    pending: PendingConnections[str] = PendingConnections()
    pending.add("a", "192.0.2.1", 2)
    pending.add("b", "192.0.2.1", 2)
    pending.discard("a")
    pending.discard("a")
    assert pending.add("c", "192.0.2.2", 2) is None
    assert pending.add("d", "192.0.2.2", 2) in {"b", "c"}
    pending.discard("unknown")
    assert len(pending) == 2


def test_an_ipv6_host_has_one_network() -> None:
    pending: PendingConnections[str] = PendingConnections()
    pending.add("peer", "fe80::1%eth0", 3)
    pending.add("flood-0", "2001:db8::1", 3)
    pending.add("flood-1", "2001:db8::2", 3)
    assert pending.add("flood-2", "2001:db8::3", 3) == "flood-0"
    assert "peer" in pending


def test_a_limit_that_was_lowered_is_reached_step_by_step() -> None:
    pending: PendingConnections[int] = PendingConnections()
    for number in range(10):
        pending.add(number, "192.0.2.1", 10)
    assert pending.add(10, "192.0.2.1", 5) == 0


def test_networks_have_their_turn_with_their_oldest_or_newest() -> None:
    pending: PendingConnections[str] = PendingConnections()
    for name, address in (("a-1", "192.0.2.1"), ("a-2", "192.0.2.1"), ("a-3", "192.0.2.1"), ("b-1", "192.0.2.2")):
        pending.add(name, address, 10)
    assert [pending.pop(), pending.pop(newest=True), pending.pop(newest=True)] == ["a-1", "b-1", "a-3"]
    assert "a-2" in pending
    assert [pending.pop(), pending.pop()] == ["a-2", None]
