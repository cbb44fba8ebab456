"""Many hosts at once: one that is dead delays nobody, and is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from fedsim.errors import FedsimError
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.ssh import Connection

AT_ONCE = 32
T = TypeVar("T")


def ask_all(
    hosts: Sequence[Host],
    seconds: float,
    question: Callable[[Connection], T],
    heard: Callable[[Host, T | FedsimError], None] = lambda _, __: None,
) -> dict[str, T | FedsimError]:
    """Ask every host over a connection of its own.

    Args:
        hosts: whom.
        seconds: how long a host may be silent.
        question: asks one.
        heard: called with each answer as it comes, in the caller's thread.

    Returns:
        By host, in the given order: the answer, or why there is none.
    """

    def ask(host: Host) -> T:
        with Connection(host, seconds) as connection:
            return question(connection)

    return _each(hosts, ask, heard)


def connect_all(hosts: Sequence[Host], seconds: float) -> dict[str, Connection | FedsimError]:
    """A connection to every host, which the caller closes, or why there is none; by host, in the given order."""
    return _each(hosts, lambda host: Connection(host, seconds), lambda _, __: None)


def _each(
    hosts: Sequence[Host], do: Callable[[Host], T], heard: Callable[[Host, T | FedsimError], None]
) -> dict[str, T | FedsimError]:
    def attempt(host: Host) -> T | FedsimError:
        try:
            return do(host)
        except FedsimError as error:
            return error

    answers: dict[str, T | FedsimError] = {}
    with ThreadPoolExecutor(min(AT_ONCE, len(hosts) or 1), thread_name_prefix="host") as threads:
        asked = {threads.submit(attempt, host): host for host in hosts}
        for done in as_completed(asked):
            host = asked[done]
            answers[host.name] = done.result()
            heard(host, answers[host.name])
    return {host.name: answers[host.name] for host in hosts}
