"""gunicorn for the web: a supervisor that reports to systemd, and a worker whose threads never wait for a client."""
