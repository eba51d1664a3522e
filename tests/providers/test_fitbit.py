"""Fitbit: kept answers of the old Web API, by their content; local times, numbers as text, units, damage."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest

from health_pipeline.providers import fitbit
from health_pipeline.providers.base import Parsed, RawDocument, UnreadableFileError
from health_pipeline.providers.fitbit import PROVIDER
from health_pipeline.providers.registry import recognise

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
SAMPLES = Path(__file__).parents[2] / "data" / "samples"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)


def parse(body: Any, zone: str | None = "Europe/Berlin", **context: str) -> Parsed:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parsed = fitbit.parse(RawDocument("daily_value", content, RECEIVED_AT, zone, context))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist() if table in parsed.tables else []


def refusals(parsed: Parsed) -> list[tuple[Any, ...]]:
    return [(row["reason"], row["field"], row["location"]) for row in parsed.quarantine.to_pylist()]


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[arg-type, misc]


REAL = [
    # The day of an empty list of workouts is nowhere in the answer.
    ("activities-date-empty-activities-list", {}, [("missing_field", "date", "summary")]),
    ("activities-date-single-in-activities-list", {"daily_value": 6, "workout": 1}, []),
    ("activities-steps-1d-1m-intraday", {"daily_value": 1, "intraday_value": 3}, []),
    ("body-log-weight", {"body_log": 4}, []),
    ("sleep-date", {"sleep": 2}, []),
    ("sleep-date-range-empty-sleep-list", {}, []),
]


@pytest.mark.parametrize(("file", "counts", "refused"), REAL, ids=[row[0] for row in REAL])
def test_recorded_answer_is_recognised_and_read(
    file: str, counts: dict[str, int], refused: list[tuple[Any, ...]]
) -> None:
    path = SHARED / "data" / "openmhealth_shimmer" / "fitbit" / f"fitbit-{file}.json"
    if not path.exists():
        pytest.skip(f"no recorded answer at {path}")
    assert recognise(path.read_bytes()).name == "fitbit"
    parsed = parse(path.read_bytes())
    assert {name: table.num_rows for name, table in parsed.tables.items() if table.num_rows} == counts
    assert (refusals(parsed), parsed.notes) == (refused, ())


def test_own_samples_are_recognised_and_files_of_others_are_not() -> None:
    for path in sorted((SAMPLES / "fitbit").iterdir()):
        assert recognise(path.read_bytes()).name == "fitbit", path.name
        # A file is known by its beginning, however long it is.
        assert fitbit.sniff(path.read_bytes()[:1500]) > 0, path.name
    assert fitbit.sniff((SAMPLES / "nightscout" / "entries.json").read_bytes()) == 0
    for other in ("oura/sleep.json", "whoop/sleep.json", "polar/activity.json", "withings/activity.json"):
        assert fitbit.sniff((SAMPLES / other).read_bytes()) == 0, other
    for other in (b"", b"[]", b"{}", b'{"weight": 80}', b'{"sleep": [{"id": 1}]}', b"\xff\xfe{"):
        assert fitbit.sniff(other) == 0, other


SUMMARY = {
    "activities": [],
    "summary": {
        "caloriesOut": 2000,
        "caloriesBMR": 1500,
        "marginalCalories": 300,
        "steps": 9000,
        "fairlyActiveMinutes": 20,
        "veryActiveMinutes": 12,
        "distances": [{"activity": "tracker", "distance": 1}, {"activity": "total", "distance": 6.5}],
    },
}
WALK = {
    "logId": 79441095,
    "activityParentName": "Walk",
    "startDate": "2026-06-19",
    "startTime": "09:00",
    "duration": 3_600_000,
    "distance": 3.36,
}


def test_sums_are_of_the_day_of_the_workouts_or_of_the_day_that_is_told() -> None:
    told = parse(SUMMARY, date="2026-06-19")
    assert {row["resource"]: row["value"] for row in rows(told, "daily_value")} == {
        "steps": 9000,
        "calories": 2000,
        "caloriesBMR": 1500,
        "marginalCalories": 300,
        "distance": 6.5,
        "activeMinutes": 32,
    }
    assert {(row["date"], row["started_at"], row["ended_at"]) for row in rows(told, "daily_value")} == {
        (dt.date(2026, 6, 19), utc(2026, 6, 18, 22), utc(2026, 6, 19, 22))
    }
    found = parse(SUMMARY | {"activities": [WALK]})
    assert rows(found, "daily_value") == rows(told, "daily_value")
    assert (found.records_in, found.records_loaded) == (2, 2)
    # Two days in one answer: it could be either.
    other = parse(SUMMARY | {"activities": [WALK, WALK | {"startDate": "2026-06-18"}]})
    assert refusals(other) == [("missing_field", "date", "summary")]
    assert len(rows(other, "workout")) == 2


def test_minutes_of_the_hour_that_comes_twice_are_told_by_their_order() -> None:
    times = ["01:45", "02:00", "02:15", "02:30", "02:45", "02:00", "02:15", "02:30", "02:45", "03:00"]
    body = {
        "activities-steps": [{"dateTime": "2026-10-25", "value": "45"}],
        "activities-steps-intraday": {
            "dataset": [{"time": f"{time}:00", "value": place} for place, time in enumerate(times)],
            "datasetInterval": 15,
            "datasetType": "minute",
        },
    }
    parsed = parse(body)
    first = utc(2026, 10, 24, 23, 45)
    quarter = dt.timedelta(minutes=15)
    assert [(row["started_at"], row["ended_at"], row["value"]) for row in rows(parsed, "intraday_value")] == [
        (first + place * quarter, first + (place + 1) * quarter, place) for place in range(10)
    ]
    assert [row["utc_offset_minutes"] for row in rows(parsed, "intraday_value")] == [120] * 5 + [60] * 5
    (day,) = rows(parsed, "daily_value")
    assert (day["started_at"], day["ended_at"], day["value"]) == (
        utc(2026, 10, 24, 22),
        utc(2026, 10, 25, 23),
        45,
    )


def level(clock: str, name: str, minutes: int) -> dict[str, Any]:
    return {"dateTime": f"2026-10-25T{clock}:00.000", "level": name, "seconds": 60 * minutes}


SLEEP = {
    "logId": 13211507000,
    "dateOfSleep": "2026-10-25",
    "startTime": "2026-10-25T01:30:00.000",
    "endTime": "2026-10-25T03:30:00.000",
    "duration": 10_800_000,
    "isMainSleep": True,
    "type": "stages",
    "minutesAsleep": 170,
    "minutesAwake": 10,
    "timeInBed": 180,
    "efficiency": 94,
    "levels": {
        "data": [level("01:30", "light", 60), level("02:30", "deep", 60), level("02:30", "rem", 60)],
        "shortData": [level("02:10", "wake", 2)],
        "summary": {"deep": {"minutes": 60}, "light": {"minutes": 60}, "rem": {"minutes": 60}, "wake": {}},
    },
}


def test_a_night_in_which_the_clock_goes_back_is_as_long_as_it_was() -> None:
    parsed = parse({"sleep": [SLEEP]})
    (night,) = rows(parsed, "sleep")
    assert (night["started_at"], night["ended_at"]) == (utc(2026, 10, 24, 23, 30), utc(2026, 10, 25, 2, 30))
    assert (night["utc_offset_minutes"], night["end_utc_offset_minutes"]) == (120, 60)
    assert [
        (run["stage"], run["start"] // 60, run["seconds"] // 60) for run in json.loads(night["stages"])
    ] == [
        ("light", 0, 40),
        ("awake", 40, 2),
        ("light", 42, 18),
        ("deep", 60, 60),
        ("rem", 120, 60),
    ]
    assert (night["asleep_minutes"], night["deep_minutes"], night["efficiency_percent"]) == (170, 60, 94)
    assert parsed.notes == ()


def test_numbers_as_text_ranges_and_units() -> None:
    parsed = parse(
        {
            "cardioScore": [
                {"dateTime": "2026-06-01", "value": {"vo2Max": "44-48"}},
                {"dateTime": "2026-06-02", "value": {"vo2Max": "45.5"}},
            ]
        }
    )
    assert [(row["date"].day, row["value"]) for row in rows(parsed, "daily_value")] == [(2, 45.5)]
    assert (parsed.records_in, parsed.skipped) == (2, {"value_is_a_range": 1})
    listed = {
        "logId": 1,
        "startTime": "2026-06-19T09:00:00.000-04:00",
        "duration": 1000,
        "distanceUnit": "Mile",
    }
    (workout,) = rows(parse({"activities": [listed]}), "workout")
    assert (workout["started_at"], workout["utc_offset_minutes"]) == (utc(2026, 6, 19, 13), -240)
    assert (workout["distance_unit"], workout["duration_seconds"]) == ("Mile", 1)
    weights = {"weight": [{"logId": "w1", "date": "2026-06-19", "weight": 80.5, "fat": 21.5}]}
    (log,) = rows(parse(weights), "body_log")
    assert (log["recorded_at"], log["weight_kg"], log["fat_percent"]) == (
        utc(2026, 6, 19, 21, 59, 59),
        80.5,
        21.5,
    )
    heart = {"activities-heart": [{"dateTime": "2026-06-02", "value": {"heartRateZones": []}}]}
    assert (rows(parse(heart), "daily_value"), parse(heart).records_loaded) == ([], 1)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"sleep": [SLEEP | {"duration": -1}, SLEEP]}, ("wrong_type", "duration", "sleep[0]")),
        ({"sleep": [SLEEP | {"startTime": "01:30"}, SLEEP]}, ("wrong_type", "startTime", "sleep[0]")),
        (
            {"sleep": [SLEEP | {"levels": {"data": [level("01:30", "dozing", 1)]}}, SLEEP]},
            ("wrong_type", "levels.data", "sleep[0]"),
        ),
        (
            {"sleep": [SLEEP | {"dateOfSleep": "0001-01-01"}, SLEEP]},
            ("wrong_type", "dateOfSleep", "sleep[0]"),
        ),
        ({"activities": [WALK | {"startTime": "25:00"}, WALK]}, ("wrong_type", "startTime", "activities[0]")),
        (
            {"activities": [{**WALK, "startTime": None}, WALK]},
            ("missing_field", "startTime", "activities[0]"),
        ),
        (
            {"activities-steps": [{"dateTime": "2026-06-02", "value": "many"}]},
            ("wrong_type", "value", "activities-steps[0]"),
        ),
        (
            {
                "activities-steps": [],
                "activities-steps-intraday": {"dataset": [{"time": "08:00:00", "value": 1}]},
            },
            ("missing_field", "dateTime", "activities-steps-intraday"),
        ),
        ({"weight": {}}, ("wrong_type", "weight", "weight")),
        (b'{"sleep": [{"logId"', ("malformed_body", None, "$")),
        ({"data": []}, ("malformed_body", None, "$")),
    ],
)
def test_damage_is_refused_alone(body: Any, refused: tuple[Any, ...]) -> None:
    parsed = parse(body)
    assert refusals(parsed) == [refused]
    assert parsed.records_loaded == parsed.records_in - 1


def test_local_times_ask_for_a_zone() -> None:
    with pytest.raises(UnreadableFileError, match="--timezone Europe/Berlin"):
        parse({"sleep": [SLEEP]}, zone=None)
    assert parse({"sleep": []}, zone=None).records_in == 0
