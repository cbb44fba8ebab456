"""The receiver daemon: takes files from configured peers, verifies them, and puts them into the spool by a rename.

`main` is the daemon, `service` its sockets, `inbox` decides what is taken and where it lies, `incoming` one file on its
way in, `quota` what each peer holds of all that is on its way, `validation` looks into a file before it counts.
"""
