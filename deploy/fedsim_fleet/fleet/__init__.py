"""The command `fedsim-fleet`: one look at all hosts of a lab, and a hand on them.

`inventory` says which hosts there are, `ssh` reaches one, `together` asks many at once; what a host tells of itself
(`on_host/report.py`, checked by `report`) is shown by `status` and judged by `doctor`; `journals` merges what they log,
`push` brings data; `main` is the command line, and restarts and runs.
"""
