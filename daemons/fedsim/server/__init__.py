"""The server daemon: claims tasks, plans them, leads their rounds, keeps what they gave.

`main` is its loop, `running` a task on its way, `folder` and `records` what is durable of it, `nodes` who is there,
`workers` the processes that compute, `housekeeping` what is cleared when nobody needs it any more.
"""
