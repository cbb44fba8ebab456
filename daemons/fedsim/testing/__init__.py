"""Tools for tests: a cluster of real processes on one machine."""
