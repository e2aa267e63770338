"""The schema, by Alembic: valid on PostgreSQL and on CockroachDB."""
