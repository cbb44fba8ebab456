"""The command `fedsim`: tasks from a terminal or a script, administration of accounts, predictions with a checkpoint.

Commands about tasks use the web's JSON API, so they have exactly the permissions of their user.
"""
