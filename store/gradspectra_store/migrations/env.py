"""What Alembic runs: the migrations on the connection (and in the transaction) that `migrating.migrate` opened."""

from __future__ import annotations

from alembic import context

from gradspectra_store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
)
context.run_migrations()
