"""The program `fedsim-client`."""

from __future__ import annotations

from fedsim.client.main import ClientDaemon
from fedsim.owner.commands import approve, page, pending, refuse
from fedsim.owner.speeds import speeds
from fedsim.runtime.daemon import daemon_main

OWNERS_COMMANDS = (pending, approve, refuse, page, speeds)


def main() -> int:
    """Run the node's daemon, or a command of its owner."""
    return daemon_main(ClientDaemon, OWNERS_COMMANDS)
