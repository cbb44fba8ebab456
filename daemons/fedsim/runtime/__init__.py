"""What the daemons share: their lifecycle under systemd, the event loop, the driver of a task, and what a task records.

`daemon` is the base of every daemon and its command line, `systemd` the messages to the service manager, `task_daemon`
the base of the two daemons that run tasks, with their `event_loop` and `outbox`. server, client, receiver and web keep
only what differs.
"""
