"""Garmin Connect: recorded answers, the account export and its units, FIT files whole and cut."""

from __future__ import annotations

import datetime as dt
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fitdecode
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import garmin_connect
from health_pipeline.providers.base import Parsed, RawDocument, RawFile, UnreadableFileError
from health_pipeline.providers.registry import recognise
from health_pipeline.sandbox import garmin_connect as sandbox
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.fit import workout_fit
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.recorded import recorded

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
RECORDED = SHARED / "data" / "garmin_connect"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
SEEN = recorded(person("ben"), dt.date(2026, 8, 4), dt.date(2026, 8, 6))


def parse(content: bytes | list[Any] | dict[str, Any], zone: str | None = "Europe/Berlin") -> Parsed:
    content = content if isinstance(content, bytes) else orjson.dumps(content)
    return garmin_connect.parse(RawDocument("records", content, RECEIVED_AT, zone))


def values(parsed: Parsed, metric: str) -> list[float]:
    table = parsed.tables["records"]
    return [row["value"] for row in table.to_pylist() if row["metric_type"] == metric]


@pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recorded answers at {RECORDED}")
def test_every_recorded_answer_is_recognised_and_accounted_for() -> None:
    refused: dict[str, Any] = {}
    loaded = 0
    for path in sorted(RECORDED.glob("*.json")):
        content = path.read_bytes()
        try:
            assert recognise(content[:65536]).name == "garmin_connect"
        except UnreadableFileError:
            refused[path.stem] = "unknown"
            continue
        parsed = parse(content, "America/Mexico_City")
        loaded += parsed.records_loaded
        if parsed.quarantine.num_rows:
            refused[path.stem] = parsed.quarantine.to_pylist()
    # What is not recognised is an application's own key.
    assert refused == {"daily_summary_get_0": "unknown"}
    assert loaded == 148


@pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recorded answers at {RECORDED}")
def test_series_of_recorded_answers_are_those_of_a_loop() -> None:
    body = orjson.loads((RECORDED / "daily_heart_rate_get_0.json").read_bytes())["body"]
    parsed = parse(body, "America/Mexico_City")
    rows = [row for row in parsed.tables["records"].to_pylist() if row["metric_type"] == "heart_rate"]
    assert [(row["recorded_at"].timestamp() * 1000, row["value"]) for row in rows] == [
        (at, bpm) for at, bpm in body["heartRateValues"] if bpm is not None
    ]
    assert {row["utc_offset_minutes"] for row in rows} == {-360}
    assert values(parsed, "resting_heart_rate") == [52]


def test_a_night_has_its_instants_offset_and_stages() -> None:
    night = next(night for night in SEEN.nights if night.kind == "main")
    (row,) = parse(sandbox.sleep_of_day(SEEN, night)).tables["sleep_sessions"].to_pylist()
    assert (row["started_at"].timestamp(), row["ended_at"].timestamp()) == (night.bed, night.wake)
    assert (row["utc_offset_minutes"], row["sleep_seconds"]) == (120, night.total_sleep)
    stages = orjson.loads(row["stages"])
    assert sum(each["seconds"] for each in stages) == night.wake - night.bed
    assert sum(each["seconds"] for each in stages if each["stage"] == "deep") == row["deep_sleep_seconds"] > 0


def test_days_need_a_zone_and_last_from_midnight_to_midnight() -> None:
    answer = [{"calendarDate": "2026-03-29", "totalSteps": 900, "totalDistance": 700}]
    rows = parse(answer).tables["records"].to_pylist()
    assert [(row["recorded_at"].hour, row["ended_at"].hour, row["value"]) for row in rows] == [
        (23, 22, 900),
        (23, 22, 700),
    ]
    assert rows[0]["record_id"] == "steps of 2026-03-29"
    with pytest.raises(UnreadableFileError, match="--timezone"):
        parse(answer, None)


def test_units_of_the_account_export_are_those_of_the_api() -> None:
    archive = parse(sandbox.account_export(SEEN))
    listed = parse(sandbox.activities(SEEN)).tables["workouts"].to_pylist()
    exported = archive.tables["workouts"].to_pylist()
    assert len(listed) == len(SEEN.workouts) > 0
    for api, export in zip(listed, exported, strict=True):
        assert export["workout_id"] == api["workout_id"]
        for name in ("duration_seconds", "distance_m", "calories_kcal", "average_heart_rate_bpm"):
            assert export[name] == pytest.approx(api[name], abs=0.01), name
    assert values(archive, "weight") == values(parse(sandbox.weighings(SEEN)), "weight")
    assert values(archive, "steps") == list(SEEN.steps_by_day().values())
    assert archive.skipped == {"other_file": 1, "in_the_list_of_activities": len(SEEN.workouts)}
    assert archive.quarantine.num_rows == 0


def test_a_workout_as_fit_is_the_workout_of_the_list() -> None:
    done = SEEN.workouts[-1]
    content = workout_fit(SEEN, done)
    assert recognise(content).name == "garmin_connect"
    with fitdecode.FitReader(io.BytesIO(content), check_crc=fitdecode.CrcCheck.RAISE) as reader:
        assert sum(isinstance(each, fitdecode.FitDataMessage) for each in reader) > 3
    parsed = parse(content, None)
    (row,) = parsed.tables["workouts"].to_pylist()
    (api,) = [
        each
        for each in parse(sandbox.activities(SEEN)).tables["workouts"].to_pylist()
        if each["workout_id"] == row["workout_id"]
    ]
    assert {name: row[name] for name in ("started_at", "ended_at", "utc_offset_minutes", "activity")} == {
        name: api[name] for name in ("started_at", "ended_at", "utc_offset_minutes", "activity")
    }
    pulses = parsed.tables["records"].to_pylist()
    assert len(pulses) == ((SEEN.pulse_at >= done.start) & (SEEN.pulse_at < done.end)).sum()
    assert {each["utc_offset_minutes"] for each in pulses} == {120}


def test_a_fit_file_that_is_cut_off_gives_what_it_holds_and_says_so() -> None:
    content = workout_fit(SEEN, SEEN.workouts[-1])
    parsed = parse(content[: len(content) // 2])
    assert 0 < parsed.tables["records"].num_rows < parse(content).tables["records"].num_rows
    assert parsed.quarantine.column("reason").to_pylist() == ["truncated_file"]
    assert "cut off" in parsed.notes[0]


REFUSALS: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "no date": ({"calendarDate": "2026-02-30", "totalSteps": 1}, "wrong_type", "calendarDate"),
    "text": ({"calendarDate": "2026-02-03", "totalSteps": "many"}, "wrong_type", "totalSteps"),
    "no duration": (
        {"activityId": 1, "startTimeGMT": "2026-01-08 14:10:21", "duration": None},
        "missing_field",
        "duration",
    ),
    "ends first": (
        {
            "calendarDate": "2026-01-08",
            "sleepStartTimestampGMT": "2026-01-08T05:00:00.0",
            "sleepEndTimestampGMT": "2026-01-08T04:00:00.0",
        },
        "ends_before_start",
        "sleepEndTimestampGMT",
    ),
    "another year": (
        {"activityId": 1, "startTimeGMT": "0001-01-01 00:00:00", "duration": 1},
        "implausible_time",
        "startTimeGMT",
    ),
    "a shape of next year": ({"calendarDate": "2026-01-08", "aura": 7}, "unknown_shape", None),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_record_that_does_not_fit_is_refused_alone_with_its_field(case: str) -> None:
    record, reason, name = REFUSALS[case]
    parsed = parse([{"calendarDate": "2026-02-01", "totalSteps": 5}, record])
    assert values(parsed, "steps") == [5]
    (row,) = parsed.quarantine.to_pylist()
    assert (row["reason"], row["field"], row["location"]) == (reason, name, "$[1]")


def test_a_triathlon_does_not_count_beside_its_parts() -> None:
    parts = [
        {"activityId": n, "startTimeGMT": f"2026-01-08 1{n}:00:00", "duration": 600, "parent": n == 0}
        for n in range(3)
    ]
    parsed = parse(parts)
    assert (parsed.records_loaded, parsed.skipped) == (2, {"sum_of_other_activities": 1})


def test_a_damaged_file_of_an_export_does_not_take_the_others_with_it() -> None:
    whole = sandbox.account_export(SEEN)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    broken = next(name for name in members if name.endswith("sleepData.json"))
    parsed = parse(pack({**members, broken: b'[{"calendarDate":'}))
    (row,) = parsed.quarantine.to_pylist()
    assert (row["reason"], row["location"]) == ("malformed_body", broken)
    assert values(parsed, "steps") == list(SEEN.steps_by_day().values())
    with pytest.raises(UnreadableFileError, match="download it again"):
        parse(whole[: len(whole) // 2])


def test_the_first_part_of_an_export_has_records() -> None:
    """Whoever takes a file judges it by that."""
    first = "DI_CONNECT/DI-Connect-Wellness/2000_sleepData.json"
    with zipfile.ZipFile(io.BytesIO(sandbox.account_export(SEEN))) as archive:
        members = {first: b"[]", **{name: archive.read(name) for name in archive.namelist()}}
    file = RawFile("records", io.BytesIO(pack(members)), RECEIVED_AT, "Europe/Berlin")
    parts = list(garmin_connect.parse_stream(file))
    assert min(part.records_in for part in parts) > 0
    nothing = RawFile("records", io.BytesIO(pack({first: b"[]"})), RECEIVED_AT, "Europe/Berlin")
    assert [part.records_in for part in garmin_connect.parse_stream(nothing)] == [0]


EXPORT, FIT = sandbox.account_export(SEEN), workout_fit(SEEN, SEEN.workouts[-1])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([EXPORT, FIT]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 10_000),
)
def test_damaged_bytes_are_read_or_refused(content: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(content)
    for place, byte in edits:
        damaged[place % len(damaged)] = byte
    try:
        parsed = parse(bytes(damaged[: len(damaged) - cut % len(damaged)]))
    except UnreadableFileError:
        return
    for name, table in parsed.tables.items():
        assert table.schema == garmin_connect.PROVIDER.entity(name).schema
        table.validate(full=True)
