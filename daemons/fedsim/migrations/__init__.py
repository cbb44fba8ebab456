"""`fedsim-migrate`: the steps that convert a state directory of an older version to the format of this one.

Daemons refuse a directory of another format (see `fedsim.spool.format`). The schema of the database has a version of
its own, see `fedsim.store.schema_version`.
"""
