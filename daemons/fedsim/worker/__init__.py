"""Workers: the processes that import torch. A daemon forks a few for each task, and ends them with the task.

On the daemon's side, `pool` manages a task's workers and `inspector` inspects the host's own data; `process` is one
worker, `forking` manages the fork servers, `interpreters` their interpreters. `jobs` defines the messages between
daemon and worker: JSON lines over a socket pair; arrays are passed as files. On the worker's side, `__main__` forks,
`main_loop` processes jobs one by one, and `host_jobs`, `node_jobs`, `server_jobs` and `checkpoint` implement them.
"""
