"""The command `fedsim`: tasks from a terminal or a script, accounts from the server's shell, predictions on a node.

Everything about tasks goes through the web's JSON API, so the command can do what its user may do, and nothing more.
"""
