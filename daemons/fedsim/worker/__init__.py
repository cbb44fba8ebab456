"""Workers: the processes that import torch. A daemon has a few forked for each task, and ends them with the task.

On the daemon's side, `pool` has a task's workers and `inspector` looks at the host's own data; `process` is one worker,
`forking` the processes from which they are forked, `interpreters` which Python those are. What is said between daemon
and worker is in `jobs`: JSON lines over a socket pair, never arrays, which are files. On the worker's side, `__main__`
forks, `main_loop` does one job after another, and `host_jobs`, `node_jobs`, `server_jobs` and `checkpoint` are the
work.
"""
