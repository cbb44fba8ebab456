"""The server daemon: claims tasks, plans them, leads their rounds, keeps what they gave.

`main` is its loop, `tasks` what it has claimed, `running` a task on its way, `folder` and `records` what is durable of
it, `work` what is computed, `nodes` who is there, `housekeeping` what is cleared when nobody needs it any more.
"""
