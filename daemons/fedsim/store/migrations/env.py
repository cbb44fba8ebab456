"""Alembic's entry point: runs the scripts on the connection and transaction that `store.schema_version` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
