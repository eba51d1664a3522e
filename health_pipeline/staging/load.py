"""Load the raw objects that staging has not seen: read, parse, append, mark as staged.

Small loads, which most are, go through dlt; large ones by COPY as they are parsed.

An object's rows count only once its row in `staged_objects` is there, which is written last. A load that was
killed leaves rows that nothing reads; the next load of the provider removes them.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from health_pipeline.providers._arrow import number_column
from health_pipeline.providers.base import (
    ANNOUNCES_DELETION,
    DELETION_SCHEMA,
    NOTICE,
    QUARANTINE_SCHEMA,
    Parsed,
    Provider,
    RawDocument,
    RawFile,
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

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from dlt.common.schema.typing import TColumnSchema
    from dlt.extract import DltResource

#: A load holds about this many bytes of raw content, which bounds the memory of a backfill of any length.
_BATCH_BYTES = 64 * 1024 * 1024
#: Raw content from which a load does not pass through dlt, which would write it to files first.
_LARGE_BYTES = 4 * 1024 * 1024
#: Arrow data that is sent at once, while as much again is being made.
_PORTION_BYTES = 4 * 1024 * 1024
#: Rows that are put into Postgres' form together: the server takes them while the next are.
_SENT_ROWS = 10_000
_LOAD_LOCK = 7_104_114_824
_ERRORS_SHOWN = 5
_ANY_DAY = dt.date(1900, 1, 1)
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
    #: Of files that people uploaded, what became of each.
    files: list[dict[str, object]] = field(default_factory=list)


def stage(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    window: Window | None = None,
    *,
    replay: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> StagingReport:
    """Stage a provider's pending objects, those of the day partitions in `window` where one is given.

    `replay` takes the objects of the window that are staged already, too: the parser reads them again.
    `on_progress` is called with (objects done, objects in all), `on_bytes` with (bytes read, bytes in all) of
    an object that is read in parts.

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
        for batch in _batches(pending, alone=provider.parse_stream is not None):
            unreadable += _load_batch(warehouse, store, provider, batch, report, on_bytes)
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
    """One at work on a provider's staging tables at a time, whoever starts it; others wait.

    dlt's tables and the removal of unfinished loads need that.
    """
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
    # What a provider told of somebody who is not connected waits until somebody is that person.
    conditions = [
        f"provider = :provider and entity <> '{NOTICE}'",
        "exists (select from ops.subjects where subjects.subject_id = raw_objects.subject_id and user_id is not null)",
    ]
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


def _batches(pending: list[PendingObject], *, alone: bool) -> Iterator[list[PendingObject]]:
    """Objects to load together; each `alone` where they are read in parts."""
    batch: list[PendingObject] = []
    size = 0
    for item in pending:
        if batch and (alone or size + item.size_bytes > _BATCH_BYTES):
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
    on_bytes: Callable[[int, int], None] | None,
) -> list[str]:
    """Stage a batch; returns what is wrong with the objects that could not be read."""
    schema = schema_name(provider.name)
    with warehouse.engine.begin() as connection:
        load_id = connection.execute(
            sa.text(
                f"insert into {schema}.loads (load_id) select nextval('ops.load_id_seq') returning load_id"
            )
        ).scalar_one()
    staged: list[_Staged] = []
    unreadable: list[str] = []
    tables = _tables(store, provider, batch, load_id, on_bytes, staged, unreadable)
    if provider.parse_stream is not None or sum(item.size_bytes for item in batch) >= _LARGE_BYTES:
        rows = _append_in_parts(warehouse, provider, tables)
    else:
        chunks: dict[str, list[pa.Table]] = {}
        for name, table in tables:
            chunks.setdefault(name, []).append(table)
        rows = _append_with_dlt(
            warehouse, provider, {name: pa.concat_tables(parts) for name, parts in chunks.items()}
        )
    with warehouse.engine.begin() as connection:
        for name, count in rows.items():
            if unreadable and provider.parse_stream is not None:
                # That an object is damaged is known when its end has been read.
                connection.execute(
                    sa.text(f'delete from {schema}."{name}" where _load_id = :load_id'),  # noqa: S608
                    {"load_id": load_id},
                )
            _analyze_if_grown(connection, f'{schema}."{name}"', count)
            # What the block-range index has not summed up is read by every query; autovacuum may be minutes away.
            connection.execute(sa.text(f"select brin_summarize_new_values('{schema}.\"{name}_load_brin\"')"))
        _mark_staged(connection, provider, load_id, staged)
    for each in staged:
        each.add_to(report)
        if provider.sniff is not None:
            report.files.append(each.report())
    return unreadable


def _tables(
    store: RawStore,
    provider: Provider,
    batch: list[PendingObject],
    load_id: int,
    on_bytes: Callable[[int, int], None] | None,
    staged: list[_Staged],
    unreadable: list[str],
) -> Iterator[tuple[str, pa.Table]]:
    """Rows of the objects, one after the other, by staging table.

    What became of an object is in `staged` when its rows have been given, or what is wrong in `unreadable`.
    """
    schemas = table_schemas(provider)
    for item in batch:
        found = _Staged(item.raw_object_id)
        try:
            for parsed in _parsed_parts(store, provider, item, on_bytes):
                found.add(parsed)
                for name, table in {**parsed.tables, "quarantine": parsed.quarantine}.items():
                    if table.num_rows:
                        yield name, _with_provenance(table, schemas[name], item.raw_object_id, load_id)
        except (RawObjectMissingError, RawObjectCorruptError, RawObjectTooLargeError) as error:
            unreadable.append(str(error))
        else:
            staged.append(found)


def _mark_staged(connection: sa.Connection, provider: Provider, load_id: int, staged: list[_Staged]) -> None:
    """Make the rows of a load count."""
    schema = schema_name(provider.name)
    if staged:
        connection.execute(
            sa.text(
                f"insert into {schema}.staged_objects (raw_object_id, load_id, parser_version, records_in, "  # noqa: S608
                "records_loaded, records_quarantined, records_skipped, rows_staged, notes) values "
                "(:raw_object_id, :load_id, :parser_version, :records_in, :records_loaded, "
                ":records_quarantined, cast(:records_skipped as jsonb), cast(:rows_staged as jsonb), :notes)"
            ),
            [each.marker(load_id, provider.parser_version) for each in staged],
        )
    days = [each.days() for each in staged if each.first_day is not None]
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


@dataclass(slots=True)
class _Staged:
    """What became of one object, part by part."""

    raw_object_id: int
    records_in: int = 0
    records_loaded: int = 0
    records_quarantined: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    notes: set[str] = field(default_factory=set)
    first_day: dt.date | None = None
    last_day: dt.date | None = None

    def add(self, parsed: Parsed) -> None:
        self.records_in += parsed.records_in
        self.records_loaded += parsed.records_loaded
        self.records_quarantined += parsed.quarantine.num_rows
        self.skipped.update(parsed.skipped)
        for name, table in {**parsed.tables, "quarantine": parsed.quarantine}.items():
            if table.num_rows:
                self.rows[name] += table.num_rows
        self.notes.update(parsed.notes)
        # What is deleted may be of any day: whatever comes late of the same series has to meet it.
        span = (_ANY_DAY, _ANY_DAY.replace(year=2200)) if "deletion" in parsed.tables else _data_days(parsed)
        if span is not None:
            self.first_day = min(span[0], self.first_day or span[0])
            self.last_day = max(span[1], self.last_day or span[1])

    def marker(self, load_id: int, parser_version: int) -> dict[str, object]:
        return {
            "raw_object_id": self.raw_object_id,
            "load_id": load_id,
            "parser_version": parser_version,
            "records_in": self.records_in,
            "records_loaded": self.records_loaded,
            "records_quarantined": self.records_quarantined,
            "records_skipped": orjson.dumps(dict(self.skipped)).decode(),
            "rows_staged": orjson.dumps(dict(self.rows)).decode(),
            "notes": sorted(self.notes),
        }

    def days(self) -> dict[str, object]:
        return {"id": self.raw_object_id, "start": self.first_day, "end": self.last_day}

    def report(self) -> dict[str, object]:
        return {
            "raw_object_id": self.raw_object_id,
            "records_in": self.records_in,
            "records_loaded": self.records_loaded,
            "records_quarantined": self.records_quarantined,
            "records_skipped": dict(self.skipped),
            "rows": dict(self.rows),
            "first_day": self.first_day and self.first_day.isoformat(),
            "last_day": self.last_day and self.last_day.isoformat(),
            "notes": sorted(self.notes),
        }

    def add_to(self, report: StagingReport) -> None:
        report.objects += 1
        report.rows.update(self.rows)
        report.records_in += self.records_in
        report.records_loaded += self.records_loaded
        report.records_quarantined += self.records_quarantined
        report.records_skipped.update(self.skipped)
        report.notes.update(self.notes)


def _analyze_if_grown(connection: sa.Connection, relation: str, rows: int) -> None:
    """Tell the planner of a load that changes a table's size by a tenth: it is queried before autovacuum looks."""
    known = connection.execute(
        sa.text("select reltuples from pg_class where oid = to_regclass(:relation)"), {"relation": relation}
    ).scalar_one()
    if rows > 0.1 * max(known, 0):
        connection.execute(sa.text(f"analyze {relation}"))


def _parsed_parts(
    store: RawStore,
    provider: Provider,
    item: PendingObject,
    on_bytes: Callable[[int, int], None] | None,
) -> Iterator[Parsed]:
    """Parse one object; whatever a parser raises becomes a quarantine row, and the other objects go on.

    Raises RawObjectMissingError, RawObjectCorruptError, RawObjectTooLargeError.
    """
    try:
        if provider.parse_stream is not None:
            with store.open(item.object_key) as stored:
                stream = stored
                if on_bytes is not None:
                    stream = io.BufferedReader(Metered(stored, item.size_bytes, on_bytes))
                file = RawFile(item.entity, stream, item.received_at, item.time_zone, item.context)
                for part in provider.parse_stream(file):
                    yield _storable(provider, part)
        else:
            content = store.get(item.object_key)
            if ANNOUNCES_DELETION.items() <= item.context.items():
                yield _deletions(provider, item, content)
                return
            document = RawDocument(item.entity, content, item.received_at, item.time_zone, item.context)
            yield _storable(provider, provider.parse(document))
        return
    except RawStoreError:
        raise
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
    yield Parsed({}, quarantine, records_in=1, records_loaded=0)


def _deletions(provider: Provider, item: PendingObject, content: bytes) -> Parsed:
    """The records that a notice of the object's entity and person says are gone. Raises what `events` raises."""
    assert provider.webhook is not None
    events = provider.webhook.events(content)
    records = [
        {"entity": item.entity, "record_id": record_id}
        for event in events
        if event.kind == "deleted"
        and event.entity == item.entity
        and event.provider_user_id == item.context.get("provider_user_id")
        for record_id in event.record_ids
    ]
    table = pa.Table.from_pylist(records, schema=DELETION_SCHEMA)
    return Parsed({"deletion": table}, QUARANTINE_SCHEMA.empty_table(), len(records), len(records))


class Metered(io.RawIOBase):
    """A stream that tells how much of it has been read."""

    def __init__(self, stream: BinaryIO, size: int, on_bytes: Callable[[int, int], None]) -> None:
        self._stream = stream
        self._size = size
        self._done = 0
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        content = self._stream.read(len(view))
        view[: len(content)] = content
        self._done += len(content)
        self._on_bytes(self._done, self._size)
        return len(content)


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
    for name, value in (("_raw_object_id", raw_object_id), ("_load_id", load_id)):
        table = table.append_column(name, number_column(np.full(table.num_rows, value), pa.int64()))
    return table.select(schema.names).cast(schema)


def _data_days(parsed: Parsed) -> tuple[dt.date, dt.date] | None:
    """First and last day of the records, from whichever date columns the tables have."""
    bounds: list[dt.date] = []
    for table in parsed.tables.values():
        for name in _DAY_COLUMNS & set(table.schema.names):
            ends = pc.min_max(table[name])
            # Instants as Python has them would be by pandas.
            days = (ends[end].cast(pa.date32()).as_py() for end in ("min", "max"))
            bounds.extend(day for day in days if day is not None)
    return (min(bounds), max(bounds)) if bounds else None


def _append_with_dlt(
    warehouse: Warehouse, provider: Provider, tables: Mapping[str, pa.Table]
) -> Mapping[str, int]:
    """Append whole tables; returns how many rows each got."""
    if tables:
        import dlt

        resources = [
            dlt.resource([table], name=name, write_disposition="append", columns=_dlt_columns(table.schema))
            for name, table in tables.items()
        ]
        _run_dlt(warehouse, provider, resources)
    return {name: table.num_rows for name, table in tables.items()}


def _append_in_parts(
    warehouse: Warehouse, provider: Provider, parts: Iterator[tuple[str, pa.Table]]
) -> Mapping[str, int]:
    """Append tables that come in parts, Arrow by binary COPY, in one transaction; returns how many rows each got.

    While the server takes one portion the next is read and parsed. dlt would have all of them on the disk first,
    twice, and takes more memory by itself than a portion does.
    """
    # Not by its DB-API, which imports pandas.
    from adbc_driver_manager import (
        INGEST_OPTION_MODE_APPEND,
        AdbcConnection,
        AdbcStatement,
        StatementOptions,
    )

    rows: Counter[str] = Counter()
    portion: dict[str, list[pa.Table]] = {}
    size = 0
    with ExitStack() as stack, ThreadPoolExecutor(1) as sender:

        def connect() -> AdbcConnection:
            connection: AdbcConnection = stack.enter_context(AdbcConnection(warehouse.arrow_database))
            connection.set_autocommit(False)
            return connection

        # It takes long where it is the first: ADBC reads the catalogue of types.
        opened = sender.submit(connect)
        sent: Future[None] | None = None

        def send(portion: dict[str, list[pa.Table]]) -> None:
            for name, tables in portion.items():
                with AdbcStatement(opened.result()) as statement:
                    statement.set_options(
                        **{
                            StatementOptions.INGEST_MODE.value: INGEST_OPTION_MODE_APPEND,
                            StatementOptions.INGEST_TARGET_DB_SCHEMA.value: schema_name(provider.name),
                            StatementOptions.INGEST_TARGET_TABLE.value: name,
                        }
                    )
                    statement.bind_stream(pa.concat_tables(tables).to_reader(_SENT_ROWS))
                    statement.execute_update()

        for name, table in parts:
            portion.setdefault(name, []).append(table)
            rows[name] += table.num_rows
            size += table.nbytes
            if size >= _PORTION_BYTES:
                if sent is not None:
                    sent.result()
                sent = sender.submit(send, portion)
                portion, size = {}, 0
        if sent is not None:
            sent.result()
        send(portion)
        opened.result().commit()
    return rows


def _dlt_columns(schema: pa.Schema) -> list[TColumnSchema]:
    return [{"name": each.name, "nullable": each.nullable} for each in schema]


def _run_dlt(warehouse: Warehouse, provider: Provider, resources: list[DltResource]) -> None:
    # A first load must not ask the network or read somebody's dlt profile.
    os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
    os.environ.setdefault("RESTORE_FROM_DESTINATION", "false")
    import dlt

    from health_pipeline.staging.destination import Destination

    # A folder a load: dlt keeps its state there and two loads that share one crash.
    folder = tempfile.mkdtemp(prefix="health-pipeline-dlt-")
    try:
        pipeline = dlt.pipeline(
            pipeline_name=schema_name(provider.name),
            destination=Destination(warehouse),
            dataset_name=schema_name(provider.name),
            pipelines_dir=folder,
        )
        source = dlt.source(lambda: resources, name=provider.name)
        pipeline.run(source(), loader_file_format="parquet").raise_on_failed_jobs()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
