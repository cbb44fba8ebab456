"""The node's daemon: announces itself, trains its clients, sends what the institution allows.

`main` is its loop, `task` the driver of a running task, `announcing` what the node reports, `audit_log` what left it.
"""
