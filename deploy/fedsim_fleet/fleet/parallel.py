"""Connects to many hosts in parallel. A host that does not answer is reported and does not delay the others."""

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
    request: Callable[[Connection], T],
    on_answer: Callable[[Host, T | FedsimError], None] = lambda _, __: None,
) -> dict[str, T | FedsimError]:
    """Send a request to every host over a connection of its own.

    Args:
        hosts: the hosts.
        seconds: timeout of a host that does not answer.
        request: sends the request to one host, and returns its answer.
        on_answer: called in the caller's thread with each answer as it arrives.

    Returns:
        By host, in the order of `hosts`: the answer, or the error.
    """

    def ask(host: Host) -> T:
        with Connection(host, seconds) as connection:
            return request(connection)

    return _each(hosts, ask, on_answer)


def connect_all(hosts: Sequence[Host], seconds: float) -> dict[str, Connection | FedsimError]:
    """Connect to every host. Returns, in the order of `hosts`, a connection that the caller closes, or the error."""
    return _each(hosts, lambda host: Connection(host, seconds), lambda _, __: None)


def _each(
    hosts: Sequence[Host], do: Callable[[Host], T], on_answer: Callable[[Host, T | FedsimError], None]
) -> dict[str, T | FedsimError]:
    def attempt(host: Host) -> T | FedsimError:
        try:
            return do(host)
        except FedsimError as error:
            return error

    answers: dict[str, T | FedsimError] = {}
    with ThreadPoolExecutor(min(AT_ONCE, len(hosts) or 1), thread_name_prefix="host") as threads:
        futures = {threads.submit(attempt, host): host for host in hosts}
        for done in as_completed(futures):
            host = futures[done]
            answers[host.name] = done.result()
            on_answer(host, answers[host.name])
    return {host.name: answers[host.name] for host in hosts}
