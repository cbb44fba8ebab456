"""The spool: every message is a file, every hand-over is a rename; the folders are the truth of what has arrived.

`files` says what a file is and who may send it, `layout` where files lie, `durable` how they are written so that they
survive, `npy` how arrays are read and written, `allowlist` which files a daemon waits for, `watch` how it is woken,
`clear` how used files go.
"""
