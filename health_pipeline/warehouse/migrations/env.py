"""Alembic environment: the connection comes from `health_pipeline.warehouse.migrate`."""

from __future__ import annotations

from alembic import context

from health_pipeline.warehouse.models import SCHEMA, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    include_schemas=True,
    version_table_schema=SCHEMA,
    include_name=lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
    compare_server_default=False,
)

with context.begin_transaction():
    context.run_migrations()
