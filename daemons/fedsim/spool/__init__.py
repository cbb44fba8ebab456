"""The spool: every message is a file, every hand-over is a rename; the folders are the truth of what has arrived."""
