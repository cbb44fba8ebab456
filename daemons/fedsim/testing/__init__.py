"""Tools for tests: a cluster of real processes on one machine, and the conformance suite for plug-ins."""
