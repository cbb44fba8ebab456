"""The web: pages and a JSON API for submitting tasks, watching them, and downloading their models."""
