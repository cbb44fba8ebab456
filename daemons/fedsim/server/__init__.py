"""The server daemon: claims tasks, plans them, leads their rounds, keeps what they gave.

`main` is its loop, `tasks` what it has claimed, `task` a task on its way, `task_dir` and `projection` what is durable
of it, `task_jobs` what is computed, `nodes` who is there, `housekeeping` what is cleared when nobody needs it any more.
"""
