"""The staging tables of a provider: made before the first load, so that dbt's views always have a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from health_pipeline.providers.base import DELETION_SCHEMA, QUARANTINE_SCHEMA, Provider

if TYPE_CHECKING:
    import sqlalchemy as sa

#: Columns staging adds to every row: where it came from, and with which load.
PROVENANCE_SCHEMA = pa.schema(
    [
        pa.field("_raw_object_id", pa.int64(), nullable=False),
        pa.field("_load_id", pa.int64(), nullable=False),
    ]
)

_TYPES = {
    pa.bool_(): "boolean",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.string(): "text",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("us", "UTC"): "timestamptz",
}


def schema_name(provider: str) -> str:
    return f"staging_{provider}"


def table_schemas(provider: Provider) -> dict[str, pa.Schema]:
    """Every staging table of a provider with its full Arrow schema, quarantine included."""
    schemas = {entity.name: entity.schema for entity in provider.entities}
    if provider.webhook is not None and provider.webhook.deletes_records:
        schemas["deletion"] = DELETION_SCHEMA
    schemas["quarantine"] = QUARANTINE_SCHEMA
    return {name: pa.schema([*PROVENANCE_SCHEMA, *schema]) for name, schema in schemas.items()}


def sql_type(arrow_type: pa.DataType) -> str:
    try:
        return _TYPES[arrow_type]
    except KeyError:
        allowed = ", ".join(str(known) for known in _TYPES)
        raise TypeError(f"staging has no column type for {arrow_type}; use one of {allowed}") from None


def ensure_tables(connection: sa.Connection, provider: Provider) -> None:
    """Create the provider's staging schema, its tables and bookkeeping where they are missing.

    `loads` has one row a load, finished or not, and `accounted` once its records have been found to be complete;
    `staged_objects` one row an object and finished load: the
    commit marker that makes an object's rows count.
    """
    schema = schema_name(provider.name)
    statements = [
        f"create schema if not exists {schema}",
        f"""create table if not exists {schema}.loads (
            load_id bigint primary key,
            finished boolean not null default false,
            accounted boolean not null default false)""",
        # Of a warehouse that was made before. `add column if not exists` would lock the table every time.
        f"""do $$ begin
            if not exists (
                select from pg_attribute where attrelid = '{schema}.loads'::regclass and attname = 'accounted'
            ) then
                alter table {schema}.loads add column accounted boolean not null default false;
            end if;
        end $$""",
        f"create index if not exists loads_to_account on {schema}.loads (load_id) where not accounted",
        f"""create table if not exists {schema}.staged_objects (
            raw_object_id bigint not null,
            load_id bigint not null references {schema}.loads,
            parser_version integer not null,
            records_in bigint not null,
            records_loaded bigint not null,
            records_quarantined bigint not null,
            records_skipped jsonb not null,
            rows_staged jsonb not null,
            notes text[] not null,
            primary key (raw_object_id, load_id))""",
        # Loads are looked for by their number, most often the newest.
        f"create index if not exists staged_objects_load on {schema}.staged_objects (load_id)",
    ]
    for name, arrow_schema in table_schemas(provider).items():
        columns = ", ".join(
            f'"{field.name}" {sql_type(field.type)}{"" if field.nullable else " not null"}'
            for field in arrow_schema
        )
        statements.append(f'create table if not exists {schema}."{name}" ({columns})')
        # Rows are appended in the order of loads: a block-range index finds a load at the cost of a few pages.
        statements.append(
            f'create index if not exists "{name}_load_brin" on {schema}."{name}" '
            "using brin (_load_id) with (pages_per_range = 16, autosummarize = on)"
        )
    for statement in statements:
        connection.exec_driver_sql(statement)
