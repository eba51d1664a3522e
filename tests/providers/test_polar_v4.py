"""Polar's Dynamic API: shapes that clients have seen, days by features, damaged records, limits, no webhook."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import httpx
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import polar_v4
from health_pipeline.providers.base import Parsed, RawDocument, Window
from health_pipeline.providers.http import ApiClient, AuthorizationError
from health_pipeline.providers.polar_v4 import PROVIDER
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def parse(entity: str, body: Any, **context: str) -> Parsed:
    parsed = polar_v4.parse(RawDocument(entity, json.dumps(body).encode(), RECEIVED_AT, context=context))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def refusals(parsed: Parsed) -> list[tuple[Any, ...]]:
    return [(row["reason"], row["field"], row["location"]) for row in parsed.quarantine.to_pylist()]


def device(name: str, *steps: int | None, start: str = "00:00:00", interval: Any = 60_000) -> dict[str, Any]:
    series = {"startTime": start, "interval": interval, "steps": list(steps)}
    return {"deviceReference": {"deviceId": name}, "activitySamples": [{"stepSamples": series}]}


def days(*devices: Any, date: str = "2026-10-25") -> dict[str, Any]:
    return {"activityDays": [{"date": date, "activitiesPerDevice": list(devices)}]}


NIGHT = {
    "sleepDate": "2026-10-25",
    "sleepResult": {
        "hypnogram": {
            "sleepStart": "2026-10-24T23:58:30.418+02:00",
            "sleepEnd": "2026-10-25T06:59:00.418+01:00",
            "deviceReference": {"uuid": "u-1"},
            "sleepStateChanges": [
                {"newState": "SLEEP_STATE_WAKE"},
                {"offsetFromStart": "690s", "newState": "SLEEP_STATE_NON_REM1"},
                {"offsetFromStart": "2490.500s", "newState": "SLEEP_STATE_NON_REM3"},
                {"offsetFromStart": "3690s", "newState": "SLEEP_STATE_OF_BLISS"},
            ],
        }
    },
    "sleepEvaluation": {
        "asleepDuration": "27000s",
        "phaseDurations": {"wake": "1830s", "rem": "5970s", "light": "14610s", "deep": "6420s"},
        "analysis": {"efficiencyPercent": 93.65},
    },
    "sleepScore": {"sleepScore": 90.84},
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_steps_come_by_device_with_or_without_the_outer_name(wrapped: bool) -> None:
    body = days(device("A", 0, 12, None, 30, start="23:58"), device("B", 7, interval="30000"))
    parsed = parse("activity", {"activities": body} if wrapped else body)
    assert [(row["device"], row["total_steps"]) for row in rows(parsed, "activity")] == [("A", 42), ("B", 7)]
    samples = rows(parsed, "step_sample")
    at = dt.datetime(2026, 10, 25, 23, 58)
    assert [(row["started_at_local"], row["offset_milliseconds"], row["steps"]) for row in samples] == [
        (at, 60_000, 12),
        (at, 180_000, 30),
        (dt.datetime(2026, 10, 25), 0, 7),
    ]
    assert samples[2]["length_milliseconds"] == 30_000
    assert (parsed.records_in, parsed.records_loaded) == (2, 2)


def test_a_day_without_steps_is_not_a_day_without_samples() -> None:
    parsed = parse("activity", days(device("A", 0, 0), {"deviceReference": {"uuid": "B"}}))
    assert [row["total_steps"] for row in rows(parsed, "activity")] == [0, None]
    assert parsed.tables["step_sample"].num_rows == 0


def test_a_device_that_is_said_twice_is_counted_once() -> None:
    parsed = parse("activity", days(device("A", 5), device("A", 6)))
    assert [row["steps"] for row in rows(parsed, "step_sample")] == [6]
    assert parsed.skipped == {"repeated_day": 1}


def test_dates_alone_are_told_apart_from_data() -> None:
    for entity, body in (
        ("activity", {"activities": {"activityDays": [{"date": "2026-10-25"}]}}),
        ("sleep", {"nightSleeps": [{"sleepDate": "2026-10-25"}]}),
        ("nightly_recharge", {"nightlyRechargeResults": [{"sleepResultDate": "2026-10-25"}]}),
    ):
        parsed = parse(entity, body)
        assert (parsed.records_loaded, parsed.skipped) == (0, {"no_data": 1}), entity
        assert parsed.quarantine.num_rows == 0


def test_stages_of_a_night_over_the_change_of_clocks() -> None:
    (night,) = rows(parse("sleep", {"nightSleeps": [NIGHT]}), "sleep")
    assert (night["utc_offset_minutes"], night["end_utc_offset_minutes"]) == (120, 60)
    assert night["started_at"] == dt.datetime(2026, 10, 24, 21, 58, 30, 418_000, tzinfo=dt.UTC)
    assert json.loads(night["stages"]) == [
        {"stage": "awake", "start": 0, "seconds": 690},
        {"stage": "light", "start": 690, "seconds": 1800},
        {"stage": "deep", "start": 2490, "seconds": 1200},
        # A state we do not know is sleep, until the end: eight hours and half a minute.
        {"stage": "asleep", "start": 3690, "seconds": 28_830 - 3690},
    ]
    assert (night["asleep_seconds"], night["deep_seconds"], night["sleep_score"]) == (27_000, 6420, 90.84)
    assert night["device"] == "u-1"


@pytest.mark.parametrize("nested", [False, True])
def test_recovery_of_a_night_with_its_samples(nested: bool) -> None:
    record = {
        "sleepResultDate": "2026-10-25",
        "ansStatus": -4.49,
        "meanNightlyRecoveryRmssd": 30,
        "meanNightlyRecoveryRespirationInterval": 4200,
        "hrvSamples": [
            {"startTime": "2026-10-25T00:30:00+02:00", "sampleInterval": "300s", "hrvValues": [28, None, 31]}
        ],
        "breathingRateSamples": [
            {"startTime": "2026-10-25T00:30:00", "sampleInterval": "300s", "breathingRateValues": [14.2]}
        ],
    }
    body: Any = {"nightlyRechargeResults": [record]}
    parsed = parse("nightly_recharge", {"nightlyRechargeResults": body} if nested else body)
    (night,) = rows(parsed, "nightly_recharge")
    assert (night["rmssd_ms"], night["respiration_interval_ms"], night["ans_charge"]) == (30, 4200, -4.49)
    at = dt.datetime(2026, 10, 25, 0, 30)
    assert [
        (
            row["kind"],
            row["started_at_local"],
            row["utc_offset_minutes"],
            row["offset_milliseconds"],
            row["value"],
        )
        for row in rows(parsed, "recharge_sample")
    ] == [("hrv", at, 120, 0, 28), ("hrv", at, 120, 600_000, 31), ("breathing", at, None, 0, 14.2)]


def test_sessions_are_named_by_what_came_with_the_page() -> None:
    session = {
        "identifier": {"id": "s1"},
        "startTime": "2026-03-15T08:01:03",
        "durationMillis": "2294836",
        "timezoneOffsetMinutes": 345,
        "sport": {"id": 27},
        "hrAvg": 160,
    }
    other = {**session, "identifier": {"id": 5}, "startTime": "2026-03-15T08:01:03Z", "sport": {"id": "9"}}
    bad = {"calories": 100}
    parsed = parse(
        "training_session", {"trainingSessions": [session, other, bad]}, sports='{"27": "RUNNING"}'
    )
    first, second = rows(parsed, "training_session")
    assert (first["id"], first["sport"], first["duration_milliseconds"]) == ("s1", "RUNNING", 2_294_836)
    assert (first["utc_offset_minutes"], first["printed_utc_offset_minutes"]) == (345, None)
    assert (second["id"], second["sport"], second["printed_utc_offset_minutes"]) == ("5", None, 0)
    assert refusals(parsed) == [("missing_field", "identifier", "trainingSessions[2]")]


def test_damaged_records_are_refused_by_name() -> None:
    bad = device("A", 1, start="noon")
    assert refusals(parse("activity", days(bad, device("B", 1)))) == [
        ("wrong_type", "activitySamples", "activityDays[0].activitiesPerDevice[0]")
    ]
    night = {**NIGHT, "sleepEvaluation": {"asleepDuration": "eight hours"}}
    assert refusals(parse("sleep", {"nightSleeps": [night]})) == [
        ("wrong_type", "sleepEvaluation.asleepDuration", "nightSleeps[0]")
    ]
    beat = {"heartRate": 60, "offsetMillis": -1}
    body = {
        "heartRateSamplesPerDay": [
            {"date": "2026-10-25", "samples": [beat, {"heartRate": 61, "offsetMillis": 0}]}
        ]
    }
    parsed = parse("continuous_heart_rate", body)
    assert refusals(parsed) == [("wrong_type", "offsetMillis", "heartRateSamplesPerDay[0].samples[0]")]
    assert [row["heart_rate_bpm"] for row in rows(parsed, "continuous_heart_rate")] == [61]
    assert refusals(parse("activity", {"days": []})) == [("malformed_body", None, "$")]


@given(st.lists(st.integers(0, 300) | st.none(), max_size=60), st.integers(1, 3_600_000))
@settings(max_examples=40, deadline=None)
def test_no_step_is_lost(steps: list[int | None], interval: int) -> None:
    parsed = parse("activity", days(device("A", *steps, interval=interval)))
    (day,) = rows(parsed, "activity")
    found = pc.sum(parsed.tables["step_sample"]["steps"]).as_py() or 0
    assert found == sum(filter(None, steps)) == (day["total_steps"] or 0)


# Against the sandbox


@pytest.fixture(scope="module")
def sandbox() -> Any:
    with run_in_thread(now=lambda: NOW) as running:
        yield running


def client(sandbox: RunningSandbox, handle: str = "ada") -> ApiClient:
    token = sandbox.app.state.apis["polar_v4"].oauth.access_token(handle)
    return ApiClient(
        "polar_v4", f"{sandbox.url}/polar_v4", lambda _renew: token, interpret=PROVIDER.interpret
    )


def test_days_are_asked_for_one_by_one_and_training_at_once(sandbox: RunningSandbox) -> None:
    window = Window(dt.date(2026, 11, 10), dt.date(2026, 11, 12))
    with client(sandbox) as api:
        for name in ("activity", "sleep", "nightly_recharge", "continuous_heart_rate"):
            pages = list(polar_v4.fetch(api, PROVIDER.entity(name), window))
            assert [page.window.start.day for page in pages] == [10, 11, 12]
            assert {page.window.start == page.window.end for page in pages} == {True}
            found = [polar_v4.parse(RawDocument(name, page.content, RECEIVED_AT)) for page in pages]
            assert min(parsed.records_loaded for parsed in found) > 0, name
        month = Window(dt.date(2026, 10, 20), dt.date(2026, 11, 12))
        (page,) = polar_v4.fetch(api, PROVIDER.entity("training_session"), month)
    document = RawDocument("training_session", page.content, RECEIVED_AT, context=page.context)
    sessions = rows(polar_v4.parse(document), "training_session")
    assert len(sessions) > 3
    assert None not in {session["sport"] for session in sessions}
    assert len(json.loads(page.context["sports"])) <= len({session["sport_id"] for session in sessions})


def test_tokens_without_the_right_to_sports_leave_them_nameless(sandbox: RunningSandbox) -> None:
    oauth = sandbox.app.state.apis["polar_v4"].oauth
    claims = {"h": "ada", "c": "sandbox", "s": "training_sessions:read", "f": "f"}
    token = oauth._issue("access", claims, None)
    window = Window(dt.date(2026, 10, 20), dt.date(2026, 11, 12))
    with ApiClient("polar_v4", f"{sandbox.url}/polar_v4", lambda _renew: token) as api:
        (page,) = polar_v4.fetch(api, PROVIDER.entity("training_session"), window)
    assert page.context == {}


def test_usage_counts_up_and_a_429_waits_as_long_as_it_says(sandbox: RunningSandbox) -> None:
    with client(sandbox) as api:
        polar_v4.identify(api)
        first, second = (
            int(api.get("/v4/data/sports/list").headers["RateLimit-Usage"].split(",")[0]) for _ in range(2)
        )
    assert second == first + 1
    answer = sandbox.app.state.apis["polar_v4"].rate_limited(17)
    assert PROVIDER.interpret is not None
    verdict = PROVIDER.interpret(httpx.Response(429, headers=dict(answer.headers)), 0.0)
    assert verdict is not None
    assert (verdict.kind, verdict.wait_seconds) == ("rate_limited", 17)
    assert [(budget.requests, budget.seconds) for budget in PROVIDER.budgets] == [
        (3000, 900),
        (100_000, 86_400),
    ]


def test_whose_account_it_is_stays_open_but_that_the_tokens_are_good_does_not(
    sandbox: RunningSandbox,
) -> None:
    with client(sandbox) as api:
        assert polar_v4.identify(api).provider_user_id is None
    stranger = ApiClient("polar_v4", f"{sandbox.url}/polar_v4", lambda _renew: "no token")
    with stranger as api, pytest.raises(AuthorizationError):
        polar_v4.identify(api)
