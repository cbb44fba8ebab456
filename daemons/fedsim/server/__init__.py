"""The server daemon: claims tasks, plans them, leads their rounds, stores their results.

`main` is its loop, `tasks` the claimed tasks, `task` the driver of a running task, `task_dir` and `projection` what is
durable of it, `task_jobs` what its workers compute, `nodes` which nodes are online, `deliveries` what nodes have yet to
receive, `housekeeping` what is cleared when it is no longer needed.
"""
