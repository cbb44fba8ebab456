"""The command `fedsim-fleet`: inspects and manages all hosts of a lab over SSH.

`inventory` reads the hosts, `ssh` connects to one, `parallel` to many. A host's report (`on_host/report.py`, validated
by `report`) is shown by `status` and checked by `doctor`. `journals` merges the logs, `push` copies data sets,
`renew` replaces certificates, and `main` is the command line.
"""
