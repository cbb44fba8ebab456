"""The spool: every message is a file, every hand-over is a rename; the folders are the record of what has arrived.

`kinds` is the table of message kinds, `files` the identity of a file, `layout` where files are stored, `durable` how
they are written, `sealed` small files with digests, `hash_chain` files of chained lines, `npy` how arrays are read and
written, `host_errors` what suspends tasks, `lock` who uses a spool, `allowlist` which files a daemon expects,
`peer_queue` which files are to be sent, `watch` how a daemon is woken, `clear` how used files are removed.
"""
