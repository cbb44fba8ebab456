"""The wire: files from one host to another, over TCP, by the protocol of PROTOCOL.md. It knows nothing of learning.

`frames` is the form of what travels, `stream` a socket (plain or TLS) that never blocks, `session` the protocol of one
connection, the same on both ends, `reactor` the few threads that all connections share, `sender` what daemons call to
send. What arrives is handed to an `Inbox` (see `incoming`); the receiver daemon has one that writes into the spool.
"""

from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Sender
from fedsim.wire.transfer import Outcome, Transfer

__all__ = ["Identity", "Outcome", "Peer", "Sender", "Transfer"]
