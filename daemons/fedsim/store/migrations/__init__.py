"""Alembic's scripts: each version of the schema follows from the one before it."""
