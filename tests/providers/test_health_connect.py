"""Health Connect: tables as they are in each version, units, zones that are left out, apps that copy each other."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers import health_connect
from health_pipeline.providers.base import Parsed, RawDocument, UnreadableFileError
from health_pipeline.providers.registry import recognise
from health_pipeline.sandbox import health_connect as sandbox
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.glucose import readings
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.recorded import recorded

RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
#: The night in which Chicago's clocks go forward, with a sensor.
SEEN = recorded(person("dana"), dt.date(2026, 3, 7), dt.date(2026, 3, 9))
EXPORT = sandbox.export(SEEN)
SMALL = sandbox.database(recorded(person("dana"), dt.date(2026, 3, 8), dt.date(2026, 3, 8)))


def parse(content: bytes) -> Parsed:
    return health_connect.parse(RawDocument("records", content, RECEIVED_AT, None))


def rows(parsed: Parsed, metric: str) -> list[dict[str, Any]]:
    return [row for row in parsed.tables["records"].to_pylist() if row["metric_type"] == metric]


def changed(path: Path, *statements: str) -> bytes:
    """The database after some SQL."""
    path.write_bytes(sandbox.database(SEEN))
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path.read_bytes()


def test_an_export_is_what_was_recorded() -> None:
    assert recognise(EXPORT[:65536]).name == "health_connect"
    parsed = parse(EXPORT)
    assert (parsed.quarantine.num_rows, parsed.skipped) == (
        0,
        {"other_table": 1, "meal_without_carbohydrates": 1},
    )
    (meal,) = rows(parsed, "carbohydrates")
    assert (meal["value"], meal["unit"], meal["device"]) == (72.5, "g", sandbox.PHONE)
    assert meal["ended_at"] - meal["recorded_at"] == dt.timedelta(minutes=15)
    steps = [row for row in rows(parsed, "steps") if row["device"] == sandbox.WATCH]
    assert [(row["recorded_at"].timestamp(), row["value"]) for row in steps] == list(
        zip(SEEN.minutes.tolist(), SEEN.steps.tolist(), strict=True)
    )
    assert {row["device"] for row in rows(parsed, "steps")} == {sandbox.WATCH, sandbox.PHONE}
    assert {row["utc_offset_minutes"] for row in steps} == {-360, -300}
    assert {row["ended_at"] - row["recorded_at"] for row in steps} == {dt.timedelta(minutes=1)}
    pulses = rows(parsed, "heart_rate")
    assert [(row["recorded_at"].timestamp(), row["value"]) for row in pulses] == list(
        zip(SEEN.pulse_at.tolist(), SEEN.pulse.tolist(), strict=True)
    )
    nights = parsed.tables["sleep_sessions"].to_pylist()
    assert [
        (row["started_at"].timestamp(), row["sleep_seconds"], row["is_main_sleep"]) for row in nights
    ] == [
        (night.bed, pytest.approx(night.total_sleep, abs=30), night.kind == "main") for night in SEEN.nights
    ]
    assert [row["activity"] for row in parsed.tables["workouts"].to_pylist()] == [
        done.activity for done in SEEN.workouts
    ]


def test_units_are_those_of_the_platform() -> None:
    parsed = parse(EXPORT)
    assert [(row["value"], row["unit"]) for row in rows(parsed, "weight")] == [
        (pytest.approx(1000 * weighed.weight), "g") for weighed in SEEN.weighings
    ]
    assert {row["utc_offset_minutes"] for row in rows(parsed, "weight")} == {None}
    assert [row["value"] for row in rows(parsed, "calories_burned")] == pytest.approx(
        [SEEN.kcal(done) for done in SEEN.workouts], abs=0.1
    )


def test_a_sensors_glucose_is_told_from_a_meters() -> None:
    parsed = parse(EXPORT)
    true = readings(SEEN.person, SEEN.dates[0], SEEN.dates[-1])
    sensor = rows(parsed, "glucose")
    assert [(row["recorded_at"].timestamp(), round(row["value"] * 18.0156)) for row in sensor] == list(
        zip(true.time.tolist(), true.mg_dl.tolist(), strict=True)
    )
    assert {row["device"] for row in rows(parsed, "blood_glucose")} == {sandbox.METER}


def test_the_database_alone_and_without_what_another_version_has_not(tmp_path: Path) -> None:
    content = changed(
        tmp_path / "x.db",
        "drop table application_info_table",
        "drop table sleep_stages_table",
        "alter table steps_record_table drop column start_zone_offset",
        "drop table blood_pressure_record_table",
    )
    assert recognise(content[:65536]).name == "health_connect"
    parsed = parse(content)
    assert {row["device"] for row in rows(parsed, "steps")} == {"unknown app"}
    assert {row["utc_offset_minutes"] for row in rows(parsed, "steps")} == {None}
    night = next(row for row in parsed.tables["sleep_sessions"].to_pylist() if row["is_main_sleep"])
    assert (night["stages"], night["sleep_seconds"]) == (None, night["time_in_bed_seconds"])


def test_bad_rows_are_refused_alone_with_table_and_row(tmp_path: Path) -> None:
    content = changed(
        tmp_path / "x.db",
        "update weight_record_table set weight = 'heavy' where row_id = 1",
        "update weight_record_table set time = -62135596800000 where row_id = 2",
        "update steps_record_table set end_time = start_time - 1 where row_id = 3",
        "update sleep_session_record_table set end_time = null where row_id = 1",
        "update heart_rate_record_series_table set beats_per_minute = x'00ff' where rowid = 5",
    )
    parsed = parse(content)
    refused = {(row["reason"], row["field"], row["location"]) for row in parsed.quarantine.to_pylist()}
    assert refused == {
        ("unparsable_value", "weight", "weight_record_table row 1"),
        ("unparsable_time", "time", "weight_record_table row 2"),
        ("ends_before_start", "end_time", "steps_record_table row 3"),
        ("unparsable_time", "start_time", "sleep_session_record_table row 1"),
        ("unparsable_value", "beats_per_minute", "heart_rate_record_series_table row 1"),
    }
    assert len(rows(parsed, "heart_rate")) == len(SEEN.pulse) - 1


def test_another_database_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    connection = sqlite3.connect(path)
    connection.execute("create table notes (text text)")
    connection.commit()
    connection.close()
    for content in (path.read_bytes(), pack({"x.db": path.read_bytes()})):
        with pytest.raises(UnreadableFileError, match="none of its tables"):
            parse(content)
    with pytest.raises(UnreadableFileError, match=r"no known kind|cannot be read"):
        recognise(path.read_bytes())


def test_a_file_that_is_cut_off_says_so() -> None:
    with pytest.raises(UnreadableFileError, match="cut off or damaged"):
        parse(EXPORT[: len(EXPORT) // 2])
    database = sandbox.database(SEEN)
    with pytest.raises(UnreadableFileError, match="cut off or damaged; export it again"):
        parse(database[: len(database) // 2])
    # A name that is no text is a column that this version has not.
    renamed = parse(database.replace(b"specimen_source", b"specimen\xffsource"))
    assert "glucose" not in renamed.tables["records"]["metric_type"].to_pylist()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(0, 255)), min_size=1, max_size=30),
    st.booleans(),
)
def test_damaged_databases_are_read_or_refused(edits: list[tuple[int, int]], only_schema: bool) -> None:
    damaged = bytearray(SMALL)
    for place, byte in edits:
        damaged[place % (4096 if only_schema else len(damaged))] = byte
    try:
        parsed = parse(bytes(damaged))
    except UnreadableFileError:
        return
    for name, table in parsed.tables.items():
        assert table.schema == health_connect.PROVIDER.entity(name).schema
        table.validate(full=True)
