"""The laboratory's network: a bridge in a namespace of its own, from which no way leads out."""

from __future__ import annotations

from dataclasses import dataclass

from commands import call

BRIDGE = "br0"
PREFIX = 15
CONTROL_ADDRESS = "198.18.0.1"  # of 198.18.0.0/15, set aside for test networks (RFC 2544)


@dataclass(frozen=True)
class Network:
    """A namespace with a bridge. The control process sits at the bridge itself, each host at a cable of its own."""

    name: str

    def make(self) -> None:
        call(["ip", "netns", "add", self.name])
        for line in (
            "link set lo up",
            f"link add {BRIDGE} type bridge",
            f"addr add {CONTROL_ADDRESS}/{PREFIX} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            self._ip(line)

    def entering(self, command: list[str]) -> list[str]:
        """The command, run in this network (`ip netns exec` would hide the cgroups)."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def cable(self, host: str) -> list[str]:
        """What systemd-nspawn must be told. The machine's name, of which it makes the cable's, is this run's alone."""
        return [f"--machine={self.name}-{host}", f"--network-bridge={BRIDGE}"]

    def cut(self, host: str) -> None:
        """Pull a host's cable."""
        self._ip(f"link set vb-{self.name}-{host} down")

    def mend(self, host: str) -> None:
        """Plug a host's cable in again."""
        self._ip(f"link set vb-{self.name}-{host} up")

    def remove(self) -> None:
        call(["ip", "netns", "delete", self.name])

    def _ip(self, line: str) -> None:
        call(["ip", "-n", self.name, *line.split()])


def networks(prefix: str) -> list[Network]:
    """Those whose name begins so."""
    names = [line.split()[0] for line in call(["ip", "netns", "list"]).stdout.splitlines() if line]
    return [Network(name) for name in names if name.startswith(prefix)]
