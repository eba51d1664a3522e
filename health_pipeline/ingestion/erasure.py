"""Data that go for good: a person's of one provider, from the kept bytes to the last derived row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.providers.base import Provider
from health_pipeline.raw.store import RawStore
from health_pipeline.staging.load import only_loader
from health_pipeline.staging.tables import schema_name, table_schemas
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.engine_tables import TABLES

#: Written by name below; the others of schema health are found by their columns.
_QUEUES = ("_changed_metrics", "_changed_daily")


@dataclass(frozen=True, slots=True)
class Erased:
    """Raw objects, and rows of staging and of schema health, the engine's too."""

    objects: int
    staged: int
    derived: int

    def words(self) -> str:
        return (
            f"erased {self.objects:,} raw objects, {self.staged:,} staged rows and {self.derived:,} derived rows; "
            "what other sources had of the same days is computed anew"
        )


def erase_source(warehouse: Warehouse, store: RawStore, provider: Provider, user_id: int) -> Erased:
    """Erase what a provider's door ever brought of a user, so that no rebuild brings it back.

    The bytes go first, then in one transaction every row that came of them and their index. Interrupted, it goes
    on when it is called again. The days are queued: the next run computes them from what is left.
    """
    with only_loader(warehouse, provider.name):
        ids = delete_bytes(warehouse, store, provider, [user_id])
        with warehouse.engine.begin() as connection:
            staged = delete_staged(connection, provider, ids)
            derived = delete_derived(connection, user_id, provider.name)
            for statement in (
                "delete from ops.webhook_events where account_id in (select account_id from ops.provider_accounts "
                "where user_id = :user and provider = :provider)",
                # So that a reconnection fetches these days again.
                "delete from ops.fetched_windows where account_id in (select account_id from ops.provider_accounts "
                "where user_id = :user and provider = :provider)",
            ):
                connection.execute(sa.text(statement), {"user": user_id, "provider": provider.name})
            connection.execute(
                sa.text("delete from ops.raw_objects where raw_object_id = any(:ids)"), {"ids": ids}
            )
    return Erased(len(ids), staged, derived)


def delete_bytes(warehouse: Warehouse, store: RawStore, provider: Provider, user_ids: list[int]) -> list[int]:
    """Delete the kept bytes that a provider's door brought of these users. Returns the ids of their raw objects.

    The index has them until the caller, who is the only loader, deletes them there: what is interrupted finds them
    again.
    """
    with warehouse.engine.connect() as connection:
        objects = connection.execute(
            sa.text(
                "select raw_object_id, object_key from ops.raw_objects inner join ops.subjects using (subject_id) "
                "where user_id = any(:users) and provider = :provider"
            ),
            {"users": user_ids, "provider": provider.name},
        ).all()
    for key in {row.object_key for row in objects}:
        store.delete(key)
    return [row.raw_object_id for row in objects]


def delete_derived(connection: sa.Connection, user_id: int, source: str | None) -> int:
    """Delete a user's rows of schema health, all or those that a source had a part in, and queue their days.

    The engine's rows of the user go as a whole, since each may rest on any day. Returns the number of rows.
    """
    tables = _columns(connection)
    if not tables:
        return 0
    deleted = 0
    given = {"user": user_id, "source": source}
    # A run that is applying objects is waited for: rows it has not committed could not be deleted.
    for table in sorted(tables):
        connection.execute(sa.text(f'lock table health."{table}" in share row exclusive mode'))
    if "daily_metrics" in tables and "_changed_daily" in tables:
        whose = "" if source is None else "and :source = any(sources_seen)"
        _queue_days(connection, tables, given)
        deleted += connection.execute(
            sa.text(f"delete from health.daily_metrics where user_id = :user {whose}"),  # noqa: S608
            given,
        ).rowcount
    engine = {table.name for table in TABLES}
    for table, columns in sorted(tables.items()):
        if table in _QUEUES or table == "daily_metrics":
            continue
        of_source = next((name for name in ("source", "provider") if name in columns), None)
        if source is None or table in engine:
            where = "user_id = :user"
        elif of_source is not None:
            where = f"user_id = :user and {of_source} = :source"
        else:
            continue
        done = connection.execute(sa.text(f'delete from health."{table}" where {where}'), given)  # noqa: S608
        deleted += done.rowcount
    if source is None:
        for table in _QUEUES:
            connection.execute(sa.text(f"delete from health.{table} where user_id = :user"), given)  # noqa: S608
    return deleted


def _queue_days(connection: sa.Connection, tables: dict[str, set[str]], given: Mapping[str, object]) -> None:
    """Have the days the source has a part in computed anew by the next run, and what the engine makes of them."""
    if given["source"] is None:
        return  # there is nobody left to compute them for
    connection.execute(
        sa.text(
            "insert into health._changed_metrics (user_id, local_date, metric_type) "
            "select user_id, local_date, metric_type from health.daily_metrics "
            "where user_id = :user and :source = any(sources_seen)"
        ),
        given,
    )
    workouts = (
        "union all select user_id, local_date, 'workout' from health.workouts where user_id = :user"
        if "workouts" in tables
        else ""
    )
    connection.execute(
        sa.text(
            "insert into health._changed_daily (user_id, local_date, metric_type) "  # noqa: S608
            "select user_id, min(local_date), metric_type from ("
            "select user_id, local_date, metric_type from health.daily_metrics where user_id = :user "
            f"{workouts}) as days group by user_id, metric_type"
        ),
        given,
    )


def _columns(connection: sa.Connection) -> dict[str, set[str]]:
    """The tables of schema health that say whose their rows are, with their columns; partitions are their table."""
    rows = connection.execute(
        sa.text(
            "select relname, array_agg(attname::text) as columns from pg_class "
            "inner join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped "
            "where relnamespace = to_regnamespace('health') and relkind in ('r', 'p') and not relispartition "
            "group by relname having 'user_id' = any(array_agg(attname::text))"
        )
    )
    return {row.relname: set(row.columns) for row in rows}


def delete_staged(connection: sa.Connection, provider: Provider, ids: list[int]) -> int:
    """Delete what was staged of a provider's raw objects. Returns the number of rows."""
    schema = schema_name(provider.name)
    if connection.execute(sa.text("select to_regnamespace(:name)"), {"name": schema}).scalar() is None:
        return 0
    deleted = 0
    for table in table_schemas(provider):
        deleted += connection.execute(
            sa.text(f'delete from {schema}."{table}" where _raw_object_id = any(:ids)'),  # noqa: S608
            {"ids": ids},
        ).rowcount
    connection.execute(
        sa.text(f"delete from {schema}.staged_objects where raw_object_id = any(:ids)"),  # noqa: S608
        {"ids": ids},
    )
    return deleted
