"""Raw objects to staging tables: complete, once, whatever parsers, objects and processes do."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from connecting import OURA

from health_pipeline.providers.base import (
    Page,
    Parsed,
    RawDocument,
    UnreadableFileError,
    Window,
)
from health_pipeline.providers.registry import get
from health_pipeline.raw.folder import FolderRawStore
from health_pipeline.raw.store import RawStoreError
from health_pipeline.staging.accounting import account_of_new_loads

DAY = dt.date(2026, 11, 10)
ONE = dt.timedelta(days=1)

STAGE = """
import sys, time
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import open_store
from health_pipeline.settings import load_settings
from health_pipeline.staging import load
from health_pipeline.warehouse.connection import open_warehouse

def stop(*_, **__):
    print("here", flush=True)
    time.sleep(120)

if sys.argv[1] != "whole":
    setattr(load, sys.argv[1], stop)
warehouse, store = open_warehouse(), open_store(load_settings().raw_location)
print("ready", flush=True)
sys.stdin.readline()
report = load.stage(warehouse, store, get("oura"))
print(report.objects, flush=True)
"""


def parsing(change: Callable[[RawDocument, Parsed], Parsed]) -> Any:
    """Oura, with something done to what its parser gives."""
    return replace(OURA, parse=lambda document: change(document, OURA.parse(document)))


def failing(entity: str, error: Exception) -> Any:
    def change(document: RawDocument, parsed: Parsed) -> Parsed:
        if document.entity == entity:
            raise error
        return parsed

    return parsing(change)


def records(pages: Sequence[Page], entity: str) -> list[dict[str, Any]]:
    return [
        record for page in pages if page.entity == entity for record in orjson.loads(page.content)["data"]
    ]


def test_every_record_of_real_pages_is_loaded(filled: Any, pages: Sequence[Page]) -> None:
    report = filled.stage()
    assert report.objects == len(pages)
    total = sum(len(orjson.loads(page.content)["data"]) for page in pages)
    assert report.records_in == report.records_loaded == total > 900
    assert (report.records_quarantined, sum(report.records_skipped.values())) == (0, 0)
    tables = filled.tables()
    for entity in {page.entity for page in pages}:
        assert len(tables[entity]) == len(records(pages, entity)), entity
    assert report.rows == {table: len(rows) for table, rows in tables.items() if rows}
    filled.assert_tidy()
    # Values are the record's, and every row names the object that it came with.
    night = records(pages, "daily_sleep")[0]
    row = filled.query(f"select * from staging_oura.daily_sleep where id = '{night['id']}'")[0]
    assert (str(row.day), row.score) == (night["day"], night["score"])
    assert row.timestamp == dt.datetime.fromisoformat(night["timestamp"])
    key = filled.scalar(f"select object_key from ops.raw_objects where raw_object_id = {row._raw_object_id}")
    assert night in orjson.loads(filled.store.get(key))["data"]


def test_the_index_learns_the_days_of_the_records(filled: Any, pages: Sequence[Page]) -> None:
    filled.stage()
    days = [record["day"] for record in records(pages, "daily_activity")]
    row = filled.query("select * from ops.raw_objects where entity = 'daily_activity'")[0]
    assert (str(row.data_start_date), str(row.data_end_date)) == (min(days), max(days))


def test_what_is_staged_is_not_staged_again(filled: Any) -> None:
    filled.stage()
    before = filled.tables(without=())
    again = filled.stage()
    assert (again.objects, again.records_in, dict(again.rows)) == (0, 0, {})
    assert filled.tables(without=()) == before
    assert filled.scalar("select count(*) from staging_oura.loads") == 1
    new = filled.deliver(b'{"data":[],"next_token":null}', "workout")
    assert filled.stage().objects == 1
    assert (
        filled.scalar(f"select records_in from staging_oura.staged_objects where raw_object_id = {new}") == 0
    )


def test_a_window_takes_the_objects_of_its_days(staging: Any, pages: Sequence[Page]) -> None:
    page = next(page for page in pages if page.entity == "daily_stress")
    record = orjson.loads(page.content)["data"][0]
    spans = [
        (DAY, DAY),
        (DAY + ONE, DAY + ONE),
        (DAY + 2 * ONE, DAY + 4 * ONE),
        (DAY + 5 * ONE, DAY + 5 * ONE),
    ]
    ids = [
        staging.deliver(
            orjson.dumps({"data": [{**record, "id": str(number)}], "next_token": None}),
            "daily_stress",
            day=start,
            until=end,
        )
        for number, (start, end) in enumerate(spans)
    ]
    assert staging.stage(window=Window(DAY + ONE, DAY + 2 * ONE)).objects == 2
    staged = "select raw_object_id from staging_oura.staged_objects order by 1"
    assert [row[0] for row in staging.query(staged)] == ids[1:3]
    assert staging.stage(window=Window(DAY + 4 * ONE, DAY + 4 * ONE)).objects == 0
    assert staging.stage().objects == 2
    assert [row[0] for row in staging.query(staged)] == ids


def test_replay_reads_again_and_the_newest_load_counts(filled: Any) -> None:
    filled.stage(provider=parsing(lambda _, parsed: replace(parsed, notes=("old parser",))))
    before = filled.tables()
    again = filled.stage(replay=True, window=Window(DAY, DAY))
    assert again.objects == filled.received
    assert filled.stage(replay=True, window=Window(DAY + ONE, DAY + ONE)).objects == 0
    newest = (
        "select distinct notes from staging_oura.staged_objects as s "
        "where load_id = (select max(load_id) from staging_oura.loads)"
    )
    assert [row.notes for row in filled.query(newest)] == [[]]
    # Append-only: each load has all rows once.
    assert filled.tables() == {name: sorted([*rows, *rows]) for name, rows in before.items()}
    filled.assert_tidy()


def test_a_parser_that_raises_quarantines_that_object_alone(filled: Any, pages: Sequence[Page]) -> None:
    report = filled.stage(provider=failing("workout", KeyError("resting pulse of ada: canary")))
    assert (report.records_quarantined, report.objects) == (1, len(pages))
    (row,) = filled.query("select * from staging_oura.quarantine")
    assert (row.entity, row.reason, row.location) == ("workout", "parser_error", "object")
    assert orjson.loads(row.original) == {"error": "KeyError"}
    tables = filled.tables()
    assert tables["workout"] == []
    assert len(tables["daily_sleep"]) == len(records(pages, "daily_sleep"))
    # What the error says may be what the person's data say.
    assert "canary" not in str(tables)
    assert "canary" not in str(filled.query("select * from staging_oura.staged_objects"))
    filled.assert_tidy()
    # The mended parser takes the object from raw.
    filled.stage(replay=True)
    assert len(filled.tables()["workout"]) == len(records(pages, "workout"))


def test_a_file_that_cannot_be_read_says_why(filled: Any) -> None:
    filled.stage(provider=failing("sleep", UnreadableFileError("the file has no header; export it again")))
    (row,) = filled.query("select * from staging_oura.quarantine")
    assert row.reason == "unreadable_file"
    assert orjson.loads(row.original) == {"error": "the file has no header; export it again"}


def wrong_type(name: str, table: pa.Table) -> tuple[str, pa.Table]:
    bad = pa.repeat("canary", table.num_rows)
    return name, table.set_column(table.schema.get_field_index("day"), "day", bad)


def without_a_required_value(name: str, table: pa.Table) -> tuple[str, pa.Table]:
    nulls = pa.nulls(table.num_rows, pa.string())
    return name, table.set_column(table.schema.get_field_index("id"), "id", nulls)


def without_a_column(name: str, table: pa.Table) -> tuple[str, pa.Table]:
    return name, table.drop_columns(["day"])


def under_a_wrong_name(name: str, table: pa.Table) -> tuple[str, pa.Table]:
    return f"{name}s", table


SPOILT = {
    "workout": wrong_type,
    "daily_stress": without_a_required_value,
    "daily_sleep": without_a_column,
    "daily_activity": under_a_wrong_name,
}


def spoil(document: RawDocument, parsed: Parsed) -> Parsed:
    if document.entity not in SPOILT:
        return parsed
    name, table = SPOILT[document.entity](document.entity, parsed.tables[document.entity])
    return replace(parsed, tables={name: table})


def test_a_parser_that_breaks_its_own_schema_stops_nobody_else(filled: Any, pages: Sequence[Page]) -> None:
    report = filled.stage(provider=parsing(spoil))
    assert (report.records_quarantined, report.objects) == (len(SPOILT), len(pages))
    rows = filled.query("select * from staging_oura.quarantine order by entity")
    assert [(row.entity, row.reason) for row in rows] == [(name, "parser_error") for name in sorted(SPOILT)]
    assert "canary" not in str(rows)
    tables = filled.tables()
    for entity in {page.entity for page in pages}:
        assert len(tables[entity]) == (0 if entity in SPOILT else len(records(pages, entity))), entity
    filled.assert_tidy()


def test_text_that_postgres_cannot_hold_stops_nobody(staging: Any, pages: Sequence[Page]) -> None:
    """A NUL is good JSON; in a value, in a name and in a record that is refused."""
    record = records(pages, "daily_stress")[0]
    bad = [
        {**record, "id": "a", "day_summary": "nor\0mal"},
        {**record, "id": "b", "new\0field": 1},
        {**record, "id": "c\0", "day": "no day\0"},
    ]
    staging.deliver(orjson.dumps({"data": bad, "next_token": None}), "daily_stress")
    staging.deliver(b'{"data": "\x00', "daily_stress")
    staging.deliver_pages(pages)
    report = staging.stage()
    assert report.records_loaded + report.records_quarantined == report.records_in
    assert report.records_quarantined == 3
    ids = {row.id for row in staging.query("select id from staging_oura.daily_stress")}
    assert ids == {"b", *(each["id"] for each in records(pages, "daily_stress"))}
    refused = staging.query("select original from staging_oura.quarantine where original like '%u0000mal%'")
    assert [orjson.loads(row.original)["day_summary"] for row in refused] == ["nor\0mal"]
    assert any("new\ufffdfield" in note for note in report.notes)
    staging.assert_tidy()


def test_an_upload_with_broken_text_stops_nobody(staging: Any) -> None:
    staging.provider = get("glucose_csv")
    good = b"timestamp,glucose,unit\n2026-11-10T08:00:00Z,100,mg/dL\n2026-11-10T08:05:00Z,1\x0000,mg/dL\n"
    staging.deliver(good, "readings")
    staging.deliver(b"\x00\x01\x02", "readings")
    staging.deliver(b"", "readings")
    report = staging.stage()
    assert report.records_in == report.records_loaded + report.records_quarantined
    assert report.records_loaded == 1
    reasons = [
        row[0] for row in staging.query("select reason from staging_glucose_csv.quarantine order by 1")
    ]
    assert reasons.count("unreadable_file") == 2
    staging.assert_tidy()


UPLOAD = """
import sys
from health_pipeline.connections.users import ensure_user
from health_pipeline.ingestion.upload import upload
from health_pipeline.raw.store import open_store
from health_pipeline.settings import load_settings
from health_pipeline.staging.load import stage
from health_pipeline.warehouse.connection import open_warehouse

warehouse, store = open_warehouse(), open_store(load_settings().raw_location)
with warehouse.engine.begin() as connection:
    user = ensure_user(connection, "ada", "Europe/London")
taken = upload(warehouse, store, user, sys.stdin.buffer.read())
report = stage(warehouse, store, taken.provider)
print(report.records_loaded, report.records_quarantined, "pandas" in sys.modules)
"""


def test_an_apple_export_is_taken_without_the_memory_of_pandas(staging: Any) -> None:
    """Good and bad values, times and zones, sleep and a workout: nothing of them calls for it."""
    at = 'sourceName="Watch" startDate="2026-11-10 08:00:00 +0000" endDate="2026-11-10 08:30:00 +0000"'
    pulse = '<Record type="HKQuantityTypeIdentifierHeartRate" unit="count/min"'
    zone = '<MetadataEntry key="HKTimeZone" value="Europe/Berlin"/>'
    export = f"""<HealthData>
 {pulse} {at} value="61">{zone}</Record>
 {pulse} {at} value="sixty"/>
 {pulse} {at.replace("08:00:00", "8 am")} value="62"/>
 <Record type="HKCategoryTypeIdentifierSleepAnalysis" {at} value="HKCategoryValueSleepAnalysisAsleepREM"/>
 <Workout workoutActivityType="HKWorkoutActivityTypeRunning" {at} duration="30" durationUnit="min"/>
</HealthData>
"""
    done = subprocess.run(
        [sys.executable, "-c", UPLOAD], input=export.encode(), capture_output=True, check=True
    )
    assert done.stdout.split() == [b"3", b"2", b"False"]
    assert staging.query("select value from staging_apple_health.records") == [(61.0,)]
    assert staging.query("select duration_seconds, distance_m from staging_apple_health.workouts") == [
        (1800, None)
    ]


def test_a_lost_or_broken_object_is_named_and_the_others_are_staged(
    filled: Any, pages: Sequence[Page]
) -> None:
    keys = {
        row.entity: row.object_key for row in filled.query("select entity, object_key from ops.raw_objects")
    }
    assert isinstance(filled.store, FolderRawStore)
    filled.store.delete(keys["sleep"])
    broken = filled.store.root / keys["workout"]
    whole = broken.read_bytes()
    broken.chmod(0o600)
    broken.write_bytes(whole[:-10])
    for _ in range(2):
        with pytest.raises(RawStoreError, match="2 raw objects of oura") as lost:
            filled.stage()
        assert keys["sleep"] in str(lost.value)
        assert keys["workout"] in str(lost.value)
        assert filled.scalar("select count(*) from staging_oura.staged_objects") == len(pages) - 2
    assert len(filled.tables()["daily_sleep"]) == len(records(pages, "daily_sleep"))
    # Once the bytes are back they are staged like any other.
    broken.write_bytes(whole)
    with pytest.raises(RawStoreError, match="1 raw object of oura"):
        filled.stage()
    assert len(filled.tables()["workout"]) == len(records(pages, "workout"))
    filled.assert_tidy()


def start(stop_at: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, stop_at],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.strip() != word:
        process.kill()
        pytest.fail(f"{line!r} came for {word!r}: {process.communicate()[1][-2000:]}")


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_kill_in_mid_load_leaves_nothing_that_counts(filled: Any, pages: Sequence[Page]) -> None:
    """Killed before the rows are written, and after they are but before the load is finished."""
    stops = {stop_at: start(stop_at) for stop_at in ("_append_with_dlt", "_analyze_if_grown")}
    for stop_at, process in stops.items():
        expect(process, "ready")
        go(process)
        expect(process, "here")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert filled.scalar("select count(*) from staging_oura.loads where not finished") == 1
        assert filled.scalar("select count(*) from staging_oura.staged_objects") == 0
        written = sum(len(rows) for rows in filled.tables().values())
        assert (written > 900) == (stop_at == "_analyze_if_grown")
    report = filled.stage()
    assert report.objects == len(pages)
    filled.assert_tidy()
    after_kills = filled.tables()
    # The same as from a clean start.
    drop(filled)
    filled.stage()
    assert filled.tables() == after_kills
    filled.assert_tidy()


def test_two_processes_at_once_double_nothing(filled: Any, pages: Sequence[Page]) -> None:
    processes = [start("whole") for _ in range(2)]
    for process in processes:
        expect(process, "ready")
    for process in processes:
        go(process)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda process: process.communicate(timeout=60), processes))
    assert [process.returncode for process in processes] == [0, 0], ended
    assert sorted(int(output) for output, _ in ended) == [0, len(pages)]
    filled.assert_tidy()
    assert len(filled.tables()["daily_sleep"]) == len(records(pages, "daily_sleep"))


def test_the_lock_is_given_back_after_an_error(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from health_pipeline.staging import load

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(load, "_append_with_dlt", fail)
        with pytest.raises(OSError, match="no space left"):
            filled.stage()
    assert filled.scalar("select count(*) from pg_locks where locktype = 'advisory'") == 0
    filled.stage()
    filled.assert_tidy()


def drop(staging: Any) -> None:
    with staging.warehouse.engine.begin() as connection:
        connection.exec_driver_sql(f"drop schema {staging.schema} cascade")


def test_dropped_staging_comes_back_from_raw_the_same(filled: Any) -> None:
    filled.stage()
    before = filled.tables()
    loads = filled.scalar("select max(load_id) from staging_oura.loads")
    drop(filled)
    filled.stage()
    assert filled.tables() == before
    # An id is never used twice: what was built from the old load is told from what comes now.
    assert filled.scalar("select min(load_id) from staging_oura.loads") > loads
    filled.assert_tidy()


def test_batches_split_a_long_backfill_and_lose_nothing(
    filled: Any, pages: Sequence[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    from health_pipeline.staging import load

    filled.stage()
    whole = filled.tables()
    drop(filled)
    monkeypatch.setattr(load, "_BATCH_BYTES", 60_000)
    steps: list[tuple[int, int]] = []
    filled.stage(on_progress=lambda done, total: steps.append((done, total)))
    assert filled.scalar("select count(*) from staging_oura.loads") == len(steps) > 1
    assert steps[-1] == (len(pages), len(pages))
    assert filled.tables() == whole
    filled.assert_tidy()


def test_a_large_load_leaves_the_rows_of_a_small_one(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from health_pipeline.staging import load

    small = filled.stage()
    whole = filled.tables()
    drop(filled)
    monkeypatch.setattr(load, "_append_with_dlt", None)
    monkeypatch.setattr(load, "_LARGE_BYTES", 0)
    monkeypatch.setattr(load, "_PORTION_BYTES", 10_000)
    monkeypatch.setattr(load, "_SENT_ROWS", 7)
    assert filled.stage() == small
    assert filled.tables() == whole
    filled.assert_tidy()


def test_a_large_load_that_fails_half_way_leaves_nothing(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from health_pipeline.staging import load

    filled.stage()
    whole = filled.tables()
    drop(filled)
    monkeypatch.setattr(load, "_LARGE_BYTES", 0)
    monkeypatch.setattr(load, "_PORTION_BYTES", 1)
    made = load._with_provenance
    tables = iter(range(5))

    def spoil(table: pa.Table, *rest: Any) -> pa.Table:
        if next(tables, None) is None:
            raise OSError("the disk is gone")
        return made(table, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(load, "_with_provenance", spoil)
        with pytest.raises(OSError, match="disk"):
            filled.stage()
    assert not any(filled.tables().values())
    filled.stage()
    assert filled.tables() == whole
    filled.assert_tidy()


def test_no_folder_of_a_load_is_left(filled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    filled.stage()
    assert list(temporary.iterdir()) == []


def test_a_load_is_accounted_for_once_and_a_loss_every_time(filled: Any, pages: Sequence[Page]) -> None:
    filled.stage()
    engine = filled.warehouse.engine
    account = account_of_new_loads(engine, "oura")
    assert account.balances
    assert (account.objects, account.records_in > 900) == (len(pages), True)
    again = account_of_new_loads(engine, "oura")
    assert (again.objects, again.balances) == (0, True)
    filled.stage(provider=failing("sleep", ValueError()), replay=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("delete from staging_oura.quarantine")
    for _ in range(2):
        lost = account_of_new_loads(engine, "oura")
        assert not lost.balances
        assert (lost.objects, lost.quarantine_rows) == (len(pages), 0)
        assert lost.records_quarantined > 0
