"""Sockets, TLS and threads below the protocol.

`stream` is a socket that never blocks, `reactor` the threads that all connections share, `stream_connection` runs the
protocol over a stream, `receiving` passes what is received to an `Inbox`.
"""
