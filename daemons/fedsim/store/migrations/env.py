"""What Alembic runs: the scripts, on the connection and in the transaction that `store.schema_version` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
