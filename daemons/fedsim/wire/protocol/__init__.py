"""The protocol of PROTOCOL.md without input and output: bytes and the time go in, events and bytes go out.

`frames` are the format on the wire, `parser` finds them in received bytes, `outgoing` chooses the next bytes to
send, `limits` are the time limits, `connection` is the state machine of one connection, the same on both ends. Nothing
here reads a clock, a socket or a file, so every time limit can be tested without waiting.
"""
