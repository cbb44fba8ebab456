"""The migration scripts for Alembic: each creates a version of the schema from the previous one."""
