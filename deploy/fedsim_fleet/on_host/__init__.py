"""Programs that run on hosts, with only Python's standard library."""
