"""Load the raw objects that staging has not seen: read, parse, append through dlt, mark as staged.

An object's rows count only once its row in `staged_objects` is there, which is written last. A load that was
killed leaves rows that nothing reads; the next load of the provider removes them.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from health_pipeline.providers.base import (
    QUARANTINE_SCHEMA,
    Parsed,
    Provider,
    RawDocument,
    UnreadableFileError,
    Window,
)
from health_pipeline.raw.store import (
    RawObjectCorruptError,
    RawObjectMissingError,
    RawObjectTooLargeError,
    RawStore,
    RawStoreError,
)
from health_pipeline.staging.tables import ensure_tables, schema_name, table_schemas
from health_pipeline.warehouse.connection import Warehouse

#: A load holds about this many bytes of raw content, which bounds the memory of a backfill of any length.
_BATCH_BYTES = 64 * 1024 * 1024
_LOAD_LOCK = 7_104_114_824
_ERRORS_SHOWN = 5
#: Columns of staging tables that say when a record is of.
_DAY_COLUMNS = {
    *("day", "recorded_at", "started_at", "bedtime_start", "start_datetime", "timestamp"),
    *("effective_date", "authored_date", "document_date"),
}


@dataclass(frozen=True, slots=True)
class PendingObject:
    raw_object_id: int
    entity: str
    object_key: str
    received_at: dt.datetime
    size_bytes: int
    time_zone: str | None
    context: Mapping[str, str]


@dataclass(slots=True)
class StagingReport:
    """What one call of `stage` did. `rows` are staged rows by table; the records are the provider's."""

    provider: str
    objects: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    records_in: int = 0
    records_loaded: int = 0
    records_quarantined: int = 0
    records_skipped: Counter[str] = field(default_factory=Counter)
    notes: set[str] = field(default_factory=set)


def stage(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    window: Window | None = None,
    *,
    replay: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> StagingReport:
    """Stage a provider's pending objects, those of the day partitions in `window` where one is given.

    `replay` takes the objects of the window that are staged already, too: the parser reads them again.
    `on_progress` is called with (objects done, objects in all).

    Raises RawStoreUnavailableError and database errors; objects staged before the error stay staged. Raises
    RawStoreError, after all others are staged, where objects are missing or corrupt: they stay pending.
    """
    report = StagingReport(provider.name)
    with only_loader(warehouse, provider.name):
        with warehouse.engine.begin() as connection:
            ensure_tables(connection, provider)
            _remove_unfinished_loads(connection, provider)
            pending = _pending_objects(connection, provider, window, replay=replay)
        done = 0
        unreadable: list[str] = []
        for batch in _batches(pending):
            unreadable += _load_batch(warehouse, store, provider, batch, report)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(pending))
    if unreadable:
        shown = "; ".join(unreadable[:_ERRORS_SHOWN]) + ("; …" if len(unreadable) > _ERRORS_SHOWN else "")
        what = "1 raw object" if len(unreadable) == 1 else f"{len(unreadable)} raw objects"
        raise RawStoreError(
            f"{what} of {provider.name} cannot be read, all others are staged. Restore from a backup of the "
            f"raw store: {shown}"
        )
    return report


@contextmanager
def only_loader(warehouse: Warehouse, provider: str) -> Iterator[None]:
    """One at work on a provider's staging tables at a time, whoever starts it; others wait."""
    with warehouse.engine.connect() as guard:
        guard.execute(
            sa.text("select pg_advisory_lock(:key, hashtext(:provider))"),
            {"key": _LOAD_LOCK % 2**31, "provider": provider},
        )
        guard.commit()
        try:
            yield
        finally:
            guard.rollback()
            guard.execute(sa.text("select pg_advisory_unlock_all()"))
            guard.commit()


def _pending_objects(
    connection: sa.Connection, provider: Provider, window: Window | None, *, replay: bool
) -> list[PendingObject]:
    conditions = ["provider = :provider"]
    if window is not None:
        conditions.append("partition_start <= :end and partition_end >= :start")
    if not replay:
        conditions.append(
            f"not exists (select from {schema_name(provider.name)}.staged_objects as staged "
            "where staged.raw_object_id = raw_objects.raw_object_id)"
        )
    rows = connection.execute(
        sa.text(
            "select raw_object_id, entity, object_key, received_at, size_bytes, time_zone, context "  # noqa: S608
            f"from ops.raw_objects where {' and '.join(conditions)} order by received_at, raw_object_id"
        ),
        {
            "provider": provider.name,
            "start": window.start if window else None,
            "end": window.end if window else None,
        }
        if window is not None
        else {"provider": provider.name},
    )
    return [PendingObject(**row) for row in rows.mappings()]


def _batches(pending: list[PendingObject]) -> Iterator[list[PendingObject]]:
    batch: list[PendingObject] = []
    size = 0
    for item in pending:
        if batch and size + item.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size_bytes
    if batch:
        yield batch


def _remove_unfinished_loads(connection: sa.Connection, provider: Provider) -> None:
    schema = schema_name(provider.name)
    unfinished = list(
        connection.execute(sa.text(f"select load_id from {schema}.loads where not finished")).scalars()  # noqa: S608
    )
    if not unfinished:
        return
    for table in table_schemas(provider):
        connection.execute(
            sa.text(f'delete from {schema}."{table}" where _load_id = any(:loads)'),  # noqa: S608
            {"loads": unfinished},
        )
    connection.execute(
        sa.text(f"delete from {schema}.loads where load_id = any(:loads)"),  # noqa: S608
        {"loads": unfinished},
    )


def _load_batch(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    batch: list[PendingObject],
    report: StagingReport,
) -> list[str]:
    """Stage a batch; returns what is wrong with the objects that could not be read."""
    schema = schema_name(provider.name)
    with warehouse.engine.begin() as connection:
        load_id = connection.execute(
            sa.text(
                f"insert into {schema}.loads (load_id) select nextval('ops.load_id_seq') returning load_id"
            )
        ).scalar_one()
    schemas = table_schemas(provider)
    chunks: dict[str, list[pa.Table]] = {name: [] for name in schemas}
    markers = []
    days: list[dict[str, object]] = []
    unreadable: list[str] = []
    for item in batch:
        try:
            content = store.get(item.object_key)
        except (RawObjectMissingError, RawObjectCorruptError, RawObjectTooLargeError) as error:
            unreadable.append(str(error))
            continue
        parsed = _parse(provider, item, content)
        rows: Counter[str] = Counter()
        for name, table in {**parsed.tables, "quarantine": parsed.quarantine}.items():
            if table.num_rows:
                rows[name] += table.num_rows
                chunks[name].append(_with_provenance(table, schemas[name], item.raw_object_id, load_id))
        markers.append(
            {
                "raw_object_id": item.raw_object_id,
                "load_id": load_id,
                "parser_version": provider.parser_version,
                "records_in": parsed.records_in,
                "records_loaded": parsed.records_loaded,
                "records_quarantined": parsed.quarantine.num_rows,
                "records_skipped": orjson.dumps(dict(parsed.skipped)).decode(),
                "rows_staged": orjson.dumps(dict(rows)).decode(),
                "notes": sorted(parsed.notes),
            }
        )
        span = _data_days(parsed)
        if span is not None:
            days.append({"id": item.raw_object_id, "start": span[0], "end": span[1]})
        report.objects += 1
        report.rows.update(rows)
        report.records_in += parsed.records_in
        report.records_loaded += parsed.records_loaded
        report.records_quarantined += parsed.quarantine.num_rows
        report.records_skipped.update(parsed.skipped)
        report.notes.update(parsed.notes)
    tables = {name: pa.concat_tables(parts) for name, parts in chunks.items() if parts}
    if tables:
        _append_with_dlt(warehouse, provider, tables)
    with warehouse.engine.begin() as connection:
        for name, table in tables.items():
            _analyze_if_grown(connection, f'{schema}."{name}"', table.num_rows)
            # What the block-range index has not summed up is read by every query; autovacuum may be minutes away.
            connection.execute(sa.text(f"select brin_summarize_new_values('{schema}.\"{name}_load_brin\"')"))
        if markers:
            connection.execute(
                sa.text(
                    f"insert into {schema}.staged_objects (raw_object_id, load_id, parser_version, records_in, "  # noqa: S608
                    "records_loaded, records_quarantined, records_skipped, rows_staged, notes) values "
                    "(:raw_object_id, :load_id, :parser_version, :records_in, :records_loaded, "
                    ":records_quarantined, cast(:records_skipped as jsonb), cast(:rows_staged as jsonb), :notes)"
                ),
                markers,
            )
        if days:
            connection.execute(
                sa.text(
                    "update ops.raw_objects set data_start_date = :start, data_end_date = :end "
                    "where raw_object_id = :id"
                ),
                days,
            )
        connection.execute(
            sa.text(f"update {schema}.loads set finished = true where load_id = :load_id"),  # noqa: S608
            {"load_id": load_id},
        )
    return unreadable


def _analyze_if_grown(connection: sa.Connection, relation: str, rows: int) -> None:
    """Tell the planner of a load that changes a table's size by a tenth: it is queried before autovacuum looks."""
    known = connection.execute(
        sa.text("select reltuples from pg_class where oid = to_regclass(:relation)"), {"relation": relation}
    ).scalar_one()
    if rows > 0.1 * max(known, 0):
        connection.execute(sa.text(f"analyze {relation}"))


def _parse(provider: Provider, item: PendingObject, content: bytes) -> Parsed:
    """Parse one object; whatever a parser raises becomes a quarantine row, and the other objects go on."""
    document = RawDocument(item.entity, content, item.received_at, item.time_zone, item.context)
    try:
        return _storable(provider, provider.parse(document))
    except UnreadableFileError as error:
        reason, detail = "unreadable_file", str(error)
    except Exception as error:
        # Only the type: a parser's own message may quote the data.
        reason, detail = "parser_error", type(error).__name__
    quarantine = pa.Table.from_pylist(
        [
            {
                "entity": item.entity,
                "reason": reason,
                "field": None,
                "location": "object",
                "original": orjson.dumps({"error": detail}).decode(),
            }
        ],
        schema=QUARANTINE_SCHEMA,
    )
    return Parsed({}, quarantine, records_in=1, records_loaded=0)


def _storable(provider: Provider, parsed: Parsed) -> Parsed:
    """What a parser gave, as the staging tables take it; raises where it is not of their schemas."""
    tables = {}
    for name, table in parsed.tables.items():
        schema = provider.entity(name).schema
        tables[name] = _without_nul(table.select(schema.names).cast(schema))
    quarantine = _without_nul(parsed.quarantine.cast(QUARANTINE_SCHEMA))
    notes = tuple(note.replace("\0", "\ufffd") for note in parsed.notes)
    return replace(parsed, tables=tables, quarantine=quarantine, notes=notes)


def _without_nul(table: pa.Table) -> pa.Table:
    """NUL, which is good JSON and which Postgres text cannot hold, is replaced; raw has the original."""
    for position, arrow_field in enumerate(table.schema):
        if pa.types.is_string(arrow_field.type):
            column = table.column(position)
            if pc.any(pc.match_substring(column, "\0")).as_py():
                table = table.set_column(position, arrow_field, pc.replace_substring(column, "\0", "\ufffd"))
    return table


def _with_provenance(table: pa.Table, schema: pa.Schema, raw_object_id: int, load_id: int) -> pa.Table:
    rows = table.num_rows
    table = table.append_column("_raw_object_id", pa.repeat(pa.scalar(raw_object_id, pa.int64()), rows))
    table = table.append_column("_load_id", pa.repeat(pa.scalar(load_id, pa.int64()), rows))
    return table.select(schema.names).cast(schema)


def _data_days(parsed: Parsed) -> tuple[dt.date, dt.date] | None:
    """First and last day of the records, from whichever date columns the tables have."""
    bounds: list[dt.date] = []
    for table in parsed.tables.values():
        for name in _DAY_COLUMNS & set(table.schema.names):
            ends = pc.min_max(table[name]).as_py().values()
            bounds.extend(
                end.date() if isinstance(end, dt.datetime) else end for end in ends if end is not None
            )
    return (min(bounds), max(bounds)) if bounds else None


def _append_with_dlt(warehouse: Warehouse, provider: Provider, tables: Mapping[str, pa.Table]) -> None:
    # A first load must not ask the network or read somebody's dlt profile.
    os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
    os.environ.setdefault("RESTORE_FROM_DESTINATION", "false")
    import dlt

    # A folder a load: dlt keeps its state there and two loads that share one crash.
    folder = tempfile.mkdtemp(prefix="health-pipeline-dlt-")
    try:
        pipeline = dlt.pipeline(
            pipeline_name=schema_name(provider.name),
            destination=dlt.destinations.postgres(credentials=warehouse.libpq_url()),
            dataset_name=schema_name(provider.name),
            pipelines_dir=folder,
        )
        source = dlt.source(
            lambda: [
                dlt.resource(
                    [table],
                    name=name,
                    write_disposition="append",
                    columns=[
                        {"name": arrow_field.name, "nullable": arrow_field.nullable}
                        for arrow_field in table.schema
                    ],
                )
                for name, table in tables.items()
            ],
            name=provider.name,
        )
        pipeline.run(source(), loader_file_format="parquet").raise_on_failed_jobs()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
