"""The receiver daemon: receives files from configured peers, and sends to those that listen on no port.

`main` is the daemon, `service` its connections, `listening` its port, `incoming_connection` one connection,
`queue_watch` notices files that are to be sent. What is received goes through `fedsim.inbox`.
"""
