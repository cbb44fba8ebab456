"""A server and nodes in network namespaces, behind links of a limited rate; prints how long a global model takes.

Run as a program in a network of its own, as root: `unshare --net python slow_network.py FOLDER NODES MEGABYTES TIMES`.
The server is at the bridge, each node in a namespace at a cable. `htb` limits what each of them sends, and what a node
receives, to 100 Mbit/s. Prints a `Measured` as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import yaml
from transfer_support import RECEIVER, SERVER, TASK, Outcomes, global_id, model_file, node_config, stop_body, stop_id

from fedsim.forwarding import Forwarding, Successor
from fedsim.spool.allowlist import want
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.state_machines.forwarding import ForwardingNode, UplinkMeter
from fedsim.wire import Outcome, Peer, Sender

PORT = 9002
PATIENCE = 280.0
RATE = 100
"""Mbit/s."""


@dataclass(frozen=True)
class Measured:
    """What was measured, in seconds until the last node has the model.

    Attributes:
        direct: to all nodes directly at once.
        one: to one node alone, each time.
        chain: from node to node, each time in turn with `one`.
        sent: bytes that the server sent for each of the latter, in models.
        chosen: how many nodes are in the chain that the server chooses at first, for the second model, and then.
    """

    direct: float
    one: list[float]
    chain: list[float]
    sent: list[float]
    chosen: list[int]


def measure(folder: Path, count: int, megabytes: int, repeats: int = 1) -> Measured:
    """Measure in a network of its own, which takes root."""
    command = ["unshare", "--net", sys.executable, __file__, str(folder), str(count), str(megabytes), str(repeats)]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        raise OSError(f"{command}: {done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def call(*lines: str) -> None:
    for line in lines:
        subprocess.run(line.split(), check=True, stderr=subprocess.DEVNULL)


def limited(prefix: str, device: str) -> None:
    """Limit what is sent through a device; at most 50 ms of it wait in the queue."""
    call(
        f"{prefix}tc qdisc add dev {device} root handle 1: htb default 1",
        f"{prefix}tc class add dev {device} parent 1: classid 1:1 htb rate {RATE}mbit quantum 60000",
        f"{prefix}tc qdisc add dev {device} parent 1:1 bfifo limit {RATE * 125 * 50}",
    )


class SlowNetwork:
    """The hosts; as a context manager it ends them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.peers: list[Peer] = []
        self._folder = folder
        self._stack = ExitStack()
        call(
            "ip link set lo up",
            "ip link add br0 type bridge",
            "ip addr add 198.18.0.1/15 dev br0",
            "ip link set br0 up",
        )
        limited("", "br0")
        for number in range(count):
            self._start(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, number: int) -> None:
        name, address = f"node-{number + 1}", f"198.18.1.{number + 1}"
        here = self._folder / name
        here.mkdir()
        config = node_config(here, name=name, insecure_plaintext=True, listen={"address": address, "port": PORT})
        path = here / "receiver.yml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        spool = Spool(config.spool).open()
        want(spool, TASK, {Kind.GLOBALPARAM: None}, accept_forwarded=True, pass_on=True)
        script = 'echo there && read go && exec "$@" > log 2>&1'  # its cable is not there yet
        command = ["unshare", "--net", "/bin/sh", "-c", script, "sh", *RECEIVER, "--config", str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n", "its namespace is made"
        process.stdout.close()
        inside = f"nsenter --net=/proc/{process.pid}/ns/net "
        call(
            f"ip link add v{number} type veth peer name eth0 netns {process.pid}",
            f"ip link set v{number} master br0 up",
            f"{inside}ip link set lo up",
            f"{inside}ip addr add {address}/15 dev eth0",
            f"{inside}ip link set eth0 up",
        )
        limited("", f"v{number}")
        limited(inside, "eth0")
        process.stdin.write(b"go\n")
        process.stdin.close()
        self.peers.append(Peer(name, address, PORT))


def outcomes_of(
    sender: Sender, peers: list[Peer], chain: tuple[str, ...], source: Path, digest: str, number: int
) -> list[Outcome]:
    """Send one round's model, along a chain or directly, and wait until all have it."""
    by_name = {peer.name: peer for peer in peers}
    before, after = dict(map(reversed, pairwise(chain))), dict(pairwise(chain))
    outcomes = Outcomes()
    for peer in reversed(peers):
        meta = {}
        if peer.name in chain:
            to = after.get(peer.name)
            successor = to and Successor(node=to, address=by_name[to].host, port=PORT)
            way = Forwarding(predecessor=before.get(peer.name), successor=successor or None, seconds=PATIENCE)
            meta = {"forwarding": way.model_dump(mode="json", exclude_none=True)}
        sender.send(peer, global_id(number), source, meta=meta, digest=digest, on_done=outcomes)
    done = outcomes.wait(len(peers), PATIENCE)
    assert all(outcome.delivered for outcome in done), done
    return done


def main(folder: Path, count: int, megabytes: int, repeats: int) -> None:
    source = folder / "m.npy"
    digest = model_file(source, megabytes * 250_000)
    size = source.stat().st_size
    rounds = itertools.count(1)
    with SlowNetwork(folder, count) as network, Sender(SERVER) as sender:

        def send(peers: list[Peer], chain: tuple[str, ...] = ()) -> list[Outcome]:
            found = outcomes_of(sender, peers, chain, source, digest, next(rounds))
            for arrived in folder.glob("*/spool/globalparam/*"):
                shutil.rmtree(arrived)
            return found

        for number, peer in enumerate(network.peers):  # connects, and waits until the receiver is there
            sender.send_and_wait(peer, stop_id(f"{number:032x}"), stop_body(f"{number:032x}"), give_up_after=PATIENCE)
        meter = UplinkMeter()
        allowed = [ForwardingNode(peer.name, accept=True, pass_on=True) for peer in network.peers]
        first = meter.choose(size, allowed)
        direct = send(network.peers, first)
        meter.direct_ended((outcome.bytes_sent, outcome.seconds) for outcome in direct)
        chain = meter.choose(size, allowed)
        one, along = [], []
        for _ in range(repeats):
            one.append(last(send(network.peers[:1])))
            along.append(send(network.peers, chain))
        meter.chain_ended(size, last(along[-1]), ())
        found = Measured(
            direct=last(direct),
            one=one,
            chain=[last(each) for each in along],
            sent=[sum(outcome.bytes_sent for outcome in each) / size for each in along],
            chosen=[len(first), len(chain), len(meter.choose(size, allowed))],
        )
    print(json.dumps(asdict(found)))  # noqa: T201 - the test reads it


def last(outcomes: list[Outcome]) -> float:
    """When the last node had the model."""
    return max(outcome.seconds for outcome in outcomes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
