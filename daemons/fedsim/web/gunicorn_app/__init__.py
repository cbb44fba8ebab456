"""gunicorn as the web uses it: its supervisor under systemd, and a worker whose threads never wait for a client."""
