"""Workers: the processes that import torch. A daemon starts a few for each task, and ends them with the task.

`process` is the daemon's side, `jobs` what is said between them (JSON lines over a socket pair, never arrays: those
are files), `__main__` the worker's loop, `host_jobs`, `node_jobs` and `server_jobs` the work.
"""
