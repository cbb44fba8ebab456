"""Accepts the files that peers offer: checks them when they are offered, receives them, moves them into the spool.

`spool_inbox` decides what is accepted and where it is stored, `incoming_file` receives one file, `quota` bounds what
each peer may have under way, `validation` checks a file's content before it counts. The receiver daemon uses it, and
the daemon of a node that listens on no port.
"""
