"""Sends files from one host to another over TCP, by the protocol of PROTOCOL.md. It knows nothing of learning.

`protocol` is the state machine of a connection without input and output, `transport` the sockets, TLS and threads below
it, `client` sends files with retry and resume, and `sender` is what daemons call. Received files are passed to an
`Inbox` (`transport.receiving`); `fedsim.inbox` has one that writes into the spool.
"""

from fedsim.wire.client.transfer import Outcome, Transfer
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Sender

__all__ = ["Identity", "Outcome", "Peer", "Sender", "Transfer"]
