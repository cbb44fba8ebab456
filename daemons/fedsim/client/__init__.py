"""The node's daemon: announces itself, trains the clients that live here, sends what the institution allows.

`main` is its loop, `task` a task on its way, `workers` the processes that train, `announcing` what the node tells.
"""
