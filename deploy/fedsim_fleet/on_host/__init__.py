"""Programs that run on hosts, with nothing but the Python that is there."""
