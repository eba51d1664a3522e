"""Health Auto Export: units of each metric, what a value is of, stretches of sleep to nights."""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import health_auto_export
from health_pipeline.providers.base import Parsed, RawDocument
from health_pipeline.providers.registry import recognise
from health_pipeline.sandbox import health_auto_export as sandbox
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.recorded import recorded

RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
#: The days of a flight: clocks of two zones. Days are summed up at home, around a change of the clock.
ABROAD = recorded(person("ben"), dt.date(2026, 8, 27), dt.date(2026, 8, 31))
AT_HOME = recorded(person("ben"), dt.date(2026, 3, 29), dt.date(2026, 4, 2))


def parse(content: Any) -> Parsed:
    return health_auto_export.parse(RawDocument("records", orjson.dumps(content), RECEIVED_AT, None))


def metric(name: str, units: str, *points: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"metrics": [{"name": name, "units": units, "data": list(points)}]}}


def rows(parsed: Parsed, metric_type: str) -> list[dict[str, Any]]:
    return [row for row in parsed.tables["records"].to_pylist() if row["metric_type"] == metric_type]


@pytest.mark.parametrize("by_day", [False, True])
def test_an_export_is_what_was_recorded_wherever_that_was(by_day: bool) -> None:
    seen = AT_HOME if by_day else ABROAD
    content = sandbox.export(seen, by_day=by_day)
    assert recognise(orjson.dumps(content)[:65536]).name == "health_auto_export"
    parsed = parse(content)
    assert (parsed.quarantine.num_rows, parsed.skipped) == (0, {"walking_speed": 1})
    steps: dict[dt.date, float] = {}
    for row in rows(parsed, "steps"):
        date = (row["recorded_at"] + dt.timedelta(minutes=row["utc_offset_minutes"])).date()
        steps[date] = steps.get(date, 0) + row["value"]
        assert row["device"].endswith(" by the day" if by_day else " by the minute")
        if not by_day:
            assert row["ended_at"] - row["recorded_at"] == dt.timedelta(minutes=1)
    assert steps == seen.steps_by_day()
    assert len({row["utc_offset_minutes"] for row in rows(parsed, "steps")}) == 2
    nights = {row["ended_at"].timestamp(): row for row in parsed.tables["sleep_sessions"].to_pylist()}
    assert nights.keys() == {night.wake for night in seen.nights}
    for night in seen.nights:
        row = nights[night.wake]
        assert row["sleep_seconds"] == pytest.approx(night.total_sleep, abs=30)
        assert row["deep_sleep_seconds"] == pytest.approx(night.seconds_of(1), abs=30)
        assert row["started_at"].timestamp() == night.bed
        assert row["is_main_sleep"] is (by_day or night.kind == "main")
    workouts = parsed.tables["workouts"].to_pylist()
    assert [row["calories_kcal"] for row in workouts] == pytest.approx(
        [seen.kcal(done) for done in seen.workouts], abs=0.01
    )
    assert [row["value"] * 0.45359237 for row in rows(parsed, "weight")] == pytest.approx(
        [weighed.weight for weighed in seen.weighings], abs=0.001
    )


def test_percent_is_one_however_it_is_written() -> None:
    points = [{"date": "2026-08-06 14:30:00 -0800", "qty": qty} for qty in (97, 0.97)]
    assert [
        (row["value"], row["unit"])
        for row in rows(parse(metric("blood_oxygen_saturation", "%", *points)), "spo2")
    ] == [
        (97, "%"),
        (0.97, "1"),
    ]


def test_a_phone_with_a_twelve_hour_clock() -> None:
    point = {"date": "2026-08-06 12:05:09\u202fAM +0200", "qty": 61}
    (row,) = rows(parse(metric("resting_heart_rate", "bpm", point)), "resting_heart_rate")
    assert row["recorded_at"] == dt.datetime(2026, 8, 5, 22, 5, 9, tzinfo=dt.UTC)


def test_a_unit_that_nobody_knows_is_left_to_the_catalogue() -> None:
    point = {"date": "2026-08-06 14:30:00 +0200", "qty": 4}
    assert rows(parse(metric("weight_body_mass", "jin", point)), "weight")[0]["unit"] == "jin"


def test_several_payloads_in_one_file() -> None:
    point = {"date": "2026-08-06 14:30:00 +0200", "qty": 80}
    parsed = parse([metric("weight_body_mass", "kg", point), metric("height", "cm", point)["data"]])
    assert parsed.records_loaded == 2


@pytest.mark.parametrize(
    ("point", "reason", "field"),
    [
        ({"date": "2026-08-06 14:30:00", "qty": 4}, "missing_offset", "date"),
        ({"date": "2026-08-36 14:30:00 +0200", "qty": 4}, "unparsable_time", "date"),
        ({"date": "2026-08-06 14:30:00 +0200", "qty": "4"}, "wrong_type", "qty"),
        ({"date": "2026-08-06 14:30:00 +0200"}, "missing_field", "qty"),
        ([], "wrong_type", None),
    ],
)
def test_a_value_that_does_not_fit_is_refused_alone(point: Any, reason: str, field: str | None) -> None:
    good = {"date": "2026-08-06 14:31:00 +0200", "qty": 60}
    parsed = parse(metric("heart_rate", "bpm", good, point))
    assert parsed.records_loaded == 1
    (row,) = parsed.quarantine.to_pylist()
    assert (row["reason"], row["field"], row["location"]) == (reason, field, "$.data.metrics[0].data[1]")


def test_stretches_two_hours_apart_are_two_sleeps_and_one_is_the_night() -> None:
    def stretch(start: str, end: str, value: str) -> dict[str, Any]:
        return {
            "startDate": f"2026-08-06 {start}:00 +0200",
            "endDate": f"2026-08-06 {end}:00 +0200",
            "value": value,
        }

    parsed = parse(
        metric(
            "sleep_analysis",
            "hr",
            stretch("00:00", "04:00", "Core"),
            stretch("04:00", "05:00", "Deep"),
            stretch("14:00", "14:30", "Asleep"),
            stretch("15:00", "15:10", "Snoring"),
        )
    )
    night, nap = parsed.tables["sleep_sessions"].to_pylist()
    assert (night["is_main_sleep"], night["sleep_seconds"], night["deep_sleep_seconds"]) == (
        True,
        18000,
        3600,
    )
    assert (nap["is_main_sleep"], nap["sleep_type"], nap["sleep_seconds"]) == (False, "nap", 1800)
    assert parsed.quarantine.column("reason").to_pylist() == ["unknown_sleep_stage"]
    assert parsed.records_in == 4


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats()
        | st.integers()
        | st.text(max_size=5)
        | st.just("2026-08-06 14:30:00 +0200"),
        lambda below: (
            st.lists(below, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "date",
                        "qty",
                        "value",
                        "startDate",
                        "endDate",
                        "start",
                        "end",
                        "sleepStart",
                        "id",
                        "Avg",
                    ]
                ),
                below,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_points_are_accounted_for(points: Any) -> None:
    content = {
        "data": {
            "metrics": [
                {"name": name, "units": "hr", "data": points}
                for name in ("sleep_analysis", "step_count", "blood_pressure")
            ],
            "workouts": points,
        }
    }
    parsed = health_auto_export.parse(
        RawDocument(
            "records", orjson.dumps(content, option=orjson.OPT_PASSTHROUGH_DATACLASS), RECEIVED_AT, None
        )
        if _is_json(content)
        else RawDocument("records", b"{}", RECEIVED_AT, None)
    )
    for name, table in parsed.tables.items():
        assert table.schema == health_auto_export.PROVIDER.entity(name).schema
        table.validate(full=True)


def _is_json(content: Any) -> bool:
    try:
        orjson.dumps(content)
    except orjson.JSONEncodeError:
        return False
    return True
