"""Polar: recorded payloads, local times, damaged records, limits, registration and signed webhooks."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import polar
from health_pipeline.providers.base import Parsed, RawDocument, WebhookRequest, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
)
from health_pipeline.providers.polar import PROVIDER
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def parse(entity: str, body: Any) -> Parsed:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parsed = polar.parse(RawDocument(entity, content, RECEIVED_AT))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def refusals(parsed: Parsed) -> list[tuple[Any, ...]]:
    return [(row["reason"], row["field"], row["location"]) for row in parsed.quarantine.to_pylist()]


NIGHT = {
    "date": "2026-10-25",
    "sleep_start_time": "2026-10-24T23:58:30+02:00",
    "sleep_end_time": "2026-10-25T06:59:00+01:00",
    "device_id": "1111AAAA",
    "light_sleep": 14400,
    "deep_sleep": 5400,
    "rem_sleep": 6000,
    "unrecognized_sleep_stage": 0,
    "total_interruption_duration": 1200,
    "sleep_score": 81,
    "hypnogram": {"23:58": 0, "00:10": 3, "00:40": 4, "01:00": 2, "01:30": 3},
    "heart_rate_samples": {"23:58": 61, "00:03": 0, "00:08": 52},
}
EXERCISE = {
    "id": "2AC312F",
    "start_time": "2026-10-25T18:30:00",
    "start_time_utc_offset": 345,
    "duration": "PT1H2M3.5S",
    "calories": 530,
    "heart_rate": {"average": 129, "maximum": 147},
    "sport": "OTHER",
    "detailed_sport_info": "RUNNING",
    "running-index": 51,
}
ACTIVITY = {
    "start_time": "2026-10-25T00:00:00",
    "active_duration": "PT2H30M",
    "steps": 8123,
    "calories": 2300,
    "active_calories": 420,
    "distance_from_steps": 6012.5,
}
STEPS = {
    "date": "2026-10-25",
    "steps": {
        "interval_ms": 60_000,
        "total_steps": 330,
        "samples": [
            {"steps": 0, "timestamp": "2026-10-25T00:00"},
            {"steps": 110, "timestamp": "2026-10-25T02:59:00"},
            {"steps": 0, "timestamp": "2026-10-25T02:02"},
        ],
    },
    "activity_zones": {"samples": [{"zone": "SLEEP", "timestamp": "2026-10-25T00:00:00"}]},
    "inactivity_stamps": [{"stamp": "2026-10-25T16:04"}],
}

REAL = [
    ("body_temperature_data", "body_temperature", {"body_temperature": 4}),
    ("get_cardio_load_by_date_range", "cardio_load", {"cardio_load": 2}),
    ("get_continuous_heart_rate_samples_with_range", "continuous_heart_rate", {"continuous_heart_rate": 2}),
    ("list_exercises", "exercise", {"exercise": 2}),
    ("list_nightly_recharges", "nightly_recharge", {"nightly_recharge": 2, "recharge_sample": 12}),
    ("list_activity_samples", "activity_samples", {"activity_samples": 1, "step_sample": 2}),
    ("get_activity_samples_for_given_date", "activity_samples", {"activity_samples": 1, "step_sample": 2}),
    ("sleep_skin_temperature_data", "skin_temperature", {"skin_temperature": 2}),
    ("get_sleep", "sleep", {"sleep": 1, "sleep_sample": 3}),
]


@pytest.mark.parametrize(("file", "entity", "counts"), REAL, ids=[row[0] for row in REAL])
def test_recorded_payload_is_loaded_whole(file: str, entity: str, counts: dict[str, int]) -> None:
    path = SHARED / "data" / "polar_accesslink" / f"{file}.json"
    if not path.exists():
        pytest.skip(f"no recorded payload at {path}")
    parsed = parse(entity, path.read_bytes())
    assert {name: table.num_rows for name, table in parsed.tables.items()} == counts
    assert (parsed.quarantine.num_rows, parsed.notes) == (0, ())


@pytest.mark.parametrize(
    ("file", "entity", "refusal"),
    [
        # What the deprecated transactions give, with other names, is refused by name.
        ("get_physical_info", "physical_info", ("missing_field", "modified", "$")),
        ("get_exercise_summary", "exercise", ("malformed_body", None, "$")),
        ("get_available_sleep_times", "sleep", ("malformed_body", None, "$")),
    ],
)
def test_recorded_payload_of_another_route_is_refused(
    file: str, entity: str, refusal: tuple[Any, ...]
) -> None:
    path = SHARED / "data" / "polar_accesslink" / f"{file}.json"
    if not path.exists():
        pytest.skip(f"no recorded payload at {path}")
    assert refusals(parse(entity, path.read_bytes())) == [refusal]


@pytest.mark.parametrize(
    ("word", "rating"), [("RPE_NONE", 1), ("RPE_HARD", 8), ("UNKNOWN", None), (None, None)]
)
def test_how_hard_it_felt_is_a_number_from_one_to_ten(word: str | None, rating: float | None) -> None:
    parsed = parse("exercise", [EXERCISE | {"training_load_pro": {"user-rpe": word, "cardio-load": 80.0}}])
    assert [row["perceived_exertion"] for row in rows(parsed, "exercise")] == [rating]


def test_stages_and_pulse_of_a_night_over_midnight() -> None:
    parsed = parse("sleep", {"nights": [NIGHT]})
    (night,) = rows(parsed, "sleep")
    assert night["started_at"] == dt.datetime(2026, 10, 24, 21, 58, 30, tzinfo=dt.UTC)
    assert (night["utc_offset_minutes"], night["end_utc_offset_minutes"]) == (120, 60)
    # 8 h and half a minute between the two; the last stage reaches to the end.
    assert json.loads(night["stages"]) == [
        {"stage": "awake", "start": 0, "seconds": 690},
        {"stage": "light", "start": 690, "seconds": 1800},
        {"stage": "deep", "start": 2490, "seconds": 1200},
        {"stage": "light", "start": 3690, "seconds": 28_830 - 3690},
    ]
    assert night["lowest_heart_rate_bpm"] == 52
    assert [
        (row["recorded_at"].strftime("%H:%M"), row["heart_rate_bpm"]) for row in rows(parsed, "sleep_sample")
    ] == [
        ("21:58", 61),
        ("22:03", 0),
        ("22:08", 52),
    ]


def test_a_night_without_series_has_no_stages() -> None:
    bare = {name: value for name, value in NIGHT.items() if name not in ("hypnogram", "heart_rate_samples")}
    (night,) = rows(parse("sleep", {"nights": [bare]}), "sleep")
    assert (night["stages"], night["lowest_heart_rate_bpm"], night["sleep_score"]) == (None, None, 81)


def test_samples_of_the_evening_are_of_the_day_before() -> None:
    recharge = {
        "date": "2026-10-25",
        "heart_rate_variability_avg": 41,
        "hrv_samples": {"23:59": 30, "00:04": 44},
    }
    parsed = parse("nightly_recharge", {"recharges": [recharge]})
    assert [(str(row["recorded_at_local"]), row["value"]) for row in rows(parsed, "recharge_sample")] == [
        ("2026-10-24 23:59:00", 30),
        ("2026-10-25 00:04:00", 44),
    ]


def test_durations_and_offsets() -> None:
    (exercise,) = rows(parse("exercise", [EXERCISE]), "exercise")
    assert (exercise["duration_seconds"], exercise["utc_offset_minutes"]) == (3723.5, 345)
    assert exercise["started_at_local"] == dt.datetime(2026, 10, 25, 18, 30)
    assert (exercise["max_heart_rate_bpm"], exercise["running_index"]) == (147, 51)
    (day,) = rows(parse("activity", [ACTIVITY]), "activity")
    assert (day["date"], day["active_duration_seconds"]) == (dt.date(2026, 10, 25), 9000)


def test_steps_keep_their_order_and_of_a_day_said_twice_the_last_counts() -> None:
    other = {"date": "2026-10-26", "steps": {"interval_ms": 30_000, "total_steps": 0, "samples": []}}
    bare = {"date": "2026-10-27"}
    earlier = {**STEPS, "steps": {**STEPS["steps"], "total_steps": 1}}
    parsed = parse("activity_samples", [earlier, other, STEPS, bare])
    assert rows(parsed, "activity_samples") == [
        {"date": dt.date(2026, 10, 26), "interval_ms": 30_000, "total_steps": 0},
        {"date": dt.date(2026, 10, 25), "interval_ms": 60_000, "total_steps": 330},
        {"date": dt.date(2026, 10, 27), "interval_ms": None, "total_steps": None},
    ]
    assert [
        (row["sequence"], str(row["started_at_local"]), row["steps"]) for row in rows(parsed, "step_sample")
    ] == [(0, "2026-10-25 00:00:00", 0), (1, "2026-10-25 02:59:00", 110), (2, "2026-10-25 02:02:00", 0)]
    assert {row["date"] for row in rows(parsed, "step_sample")} == {dt.date(2026, 10, 25)}
    assert (parsed.records_in, parsed.records_loaded, parsed.skipped) == (4, 3, {"repeated_day": 1})
    assert (parsed.notes, parsed.quarantine.num_rows) == ((), 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"interval_ms": 0}, "steps.interval_ms"),
        ({"interval_ms": None}, "steps.interval_ms"),
        ({"total_steps": "330"}, "steps.total_steps"),
        ({"samples": {}}, "steps.samples"),
        ({"samples": [{"steps": 5}]}, "steps.samples"),
        ({"samples": [{"steps": "5", "timestamp": "2026-10-25T02:02"}]}, "steps.samples"),
        ({"samples": [{"steps": 5, "timestamp": "2026-10-25T02:02Z"}]}, "steps.samples"),
        ({"samples": [None]}, "steps.samples"),
    ],
)
def test_a_day_with_damaged_steps_is_refused_alone(change: dict[str, Any], field: str) -> None:
    damaged = {**STEPS, "date": "2026-10-24", "steps": {**STEPS["steps"], **change}}
    parsed = parse("activity_samples", [damaged, STEPS])
    assert [row[1:] for row in refusals(parsed)] == [(field, "$[0]")]
    assert parsed.tables == parse("activity_samples", STEPS).tables


@pytest.mark.parametrize(
    ("entity", "record", "change", "refusal"),
    [
        ("exercise", EXERCISE, {"duration": "1:02:03"}, ("wrong_type", "duration", "$[1]")),
        ("exercise", EXERCISE, {"duration": "PT"}, ("wrong_type", "duration", "$[1]")),
        ("exercise", EXERCISE, {"start_time": "2026-10-25T18:30:00Z"}, ("wrong_type", "start_time", "$[1]")),
        (
            "exercise",
            EXERCISE,
            {"start_time_utc_offset": 4000},
            ("wrong_type", "start_time_utc_offset", "$[1]"),
        ),
        ("exercise", EXERCISE, {"id": None}, ("missing_field", "id", "$[1]")),
        ("exercise", EXERCISE, {"heart_rate": 129}, ("wrong_type", "heart_rate", "$[1]")),
        ("activity", ACTIVITY, {"steps": "8123"}, ("wrong_type", "steps", "$[1]")),
        ("activity", ACTIVITY, {"start_time": "yesterday"}, ("wrong_type", "start_time", "$[1]")),
        ("sleep", NIGHT, {"hypnogram": {"24:10": 1}}, ("wrong_type", "hypnogram", "nights[1]")),
        ("sleep", NIGHT, {"hypnogram": {"00:10": 9}}, ("wrong_type", "hypnogram", "nights[1]")),
        (
            "sleep",
            NIGHT,
            {"heart_rate_samples": {"00:10": "60"}},
            ("wrong_type", "heart_rate_samples", "nights[1]"),
        ),
        (
            "sleep",
            NIGHT,
            {"sleep_start_time": "2026-10-24T23:58"},
            ("wrong_type", "sleep_start_time", "nights[1]"),
        ),
    ],
)
def test_damaged_record_is_quarantined_alone(
    entity: str, record: dict[str, Any], change: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    def body(*records: Any) -> Any:
        return {"nights": list(records)} if entity == "sleep" else list(records)

    parsed = parse(entity, body(record, {**record, **change}, record))
    assert refusals(parsed) == [refusal]
    for name, table in parse(entity, body(record, record)).tables.items():
        assert parsed.tables[name] == table


def test_damaged_samples_are_refused_alone() -> None:
    day = {"date": "2026-10-25", "heart_rate_samples": [{"heart_rate": 63, "sample_time": "00:02:08"}, {}, 7]}
    parsed = parse("continuous_heart_rate", day)
    assert [str(row["recorded_at_local"]) for row in rows(parsed, "continuous_heart_rate")] == [
        "2026-10-25 00:02:08"
    ]
    assert refusals(parsed) == [
        ("missing_field", "time", "[0].heart_rate_samples[1]"),
        ("wrong_type", None, "[0].heart_rate_samples[2]"),
    ]


@pytest.mark.parametrize("content", [b"", b"<html>", b"7", b"null", b'"x"', b'{"error": "x"}'])
@pytest.mark.parametrize("entity", ["activity", "sleep", "nightly_recharge", "continuous_heart_rate", "spo2"])
def test_malformed_body_is_one_quarantine_row(entity: str, content: bytes) -> None:
    parsed = parse(entity, content)
    assert refusals(parsed) == [("malformed_body", None, "$")]
    assert (parsed.records_in, parsed.records_loaded) == (1, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(NIGHT)),
        st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.none(), max_size=1),
        max_size=3,
    )
)
def test_whatever_the_damage_the_night_beside_it_is_unharmed(damage: dict[str, Any]) -> None:
    parsed = parse("sleep", {"nights": [{**NIGHT, **damage}, NIGHT]})
    assert parsed.records_in == 2
    assert "nights[1]" not in parsed.quarantine["location"].to_pylist()


# Limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "usage", "reset", "kind", "wait"),
    [
        (200, "10, 10", "900, 86400", None, None),
        (200, "500, 900", "31, 40000", "good", 31.0),
        (200, "500, 5100", "31, 40000", "good", 40000.0),
        (429, "500, 900", "31, 40000", "rate_limited", 31.0),
        (429, None, None, "rate_limited", 900.0),
        (429, "many", "31, 40000", "rate_limited", 40000.0),
        (403, "10, 10", "900, 86400", None, None),
    ],
)
def test_limits_are_read_of_both_windows(
    status: int, usage: str | None, reset: str | None, kind: str | None, wait: float | None
) -> None:
    headers = {"RateLimit-Limit": "500, 5100"}
    if usage is not None and reset is not None:
        headers |= {"RateLimit-Usage": usage, "RateLimit-Reset": reset}
    verdict = polar.interpret(httpx.Response(status, headers=headers), 0.0)
    assert (verdict and verdict.kind, verdict and verdict.wait_seconds) == (kind, wait)


# Fetching ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with run_in_thread(now=lambda: NOW) as running:
        yield running


@pytest.fixture
def client(sandbox: RunningSandbox) -> Iterator[ApiClient]:
    token = str(sandbox.app.state.apis["polar"].oauth.access_token("ada"))
    with ApiClient(
        "polar",
        f"{sandbox.url}/polar",
        lambda _: token,
        interpret=PROVIDER.interpret,
        provider_user_id="77",
        max_wait=0.0,
    ) as client:
        yield client
    sandbox.app.state.faults.clear()


def fetched(client: ApiClient, entity: str, start: str, end: str) -> list[dict[str, Any]]:
    window = Window(dt.date.fromisoformat(start), dt.date.fromisoformat(end))
    found = []
    for page in polar.fetch(client, PROVIDER.entity(entity), window):
        parsed = parse(page.entity, page.content)
        assert (parsed.quarantine.num_rows, parsed.notes) == (0, ())
        found += rows(parsed, entity)
    return found


def test_registration_opens_the_data_and_may_be_repeated(sandbox: RunningSandbox) -> None:
    token = str(sandbox.app.state.apis["polar"].oauth.access_token("dana"))
    with ApiClient("polar", f"{sandbox.url}/polar", lambda _: token, provider_user_id="78") as client:
        with pytest.raises(PermissionMissingError):
            fetched(client, "sleep", "2026-11-01", "2026-11-02")
        for _ in range(2):
            assert polar.identify(client).provider_user_id == "78"
        assert fetched(client, "sleep", "2026-11-01", "2026-11-02")
        client.provider_user_id = None
        with pytest.raises(MalformedResponseError, match="no user id"):
            polar.identify(client)


def test_every_entity_comes_and_days_are_those_asked_for(client: ApiClient) -> None:
    polar.identify(client)
    for entity in ("activity", "activity_samples", "cardio_load"):
        days = [str(row["date"]) for row in fetched(client, entity, "2026-11-01", "2026-11-03")]
        assert days == ["2026-11-01", "2026-11-02", "2026-11-03"]
    for entity in ("sleep", "nightly_recharge", "exercise", "physical_info", "skin_temperature", "spo2"):
        assert fetched(client, entity, "2026-11-01", "2026-11-12"), entity
    assert fetched(client, "body_temperature", "2026-11-01", "2026-11-12") == []
    local = [
        row["recorded_at_local"]
        for row in fetched(client, "continuous_heart_rate", "2026-11-02", "2026-11-03")
    ]
    assert {str(time.date()) for time in local} == {"2026-11-02", "2026-11-03"}
    assert len(set(local)) == len(local) > 200


def test_a_day_without_heart_rate_is_no_page(client: ApiClient) -> None:
    polar.identify(client)
    assert fetched(client, "continuous_heart_rate", "2023-01-01", "2023-01-02") == []


def test_limit_and_dead_token(sandbox: RunningSandbox, client: ApiClient) -> None:
    polar.identify(client)
    for kind, error in (("unauthorized", AuthorizationError), ("rate_limit", RateLimitedError)):
        fault = {"provider": "polar", "kind": kind, "count": None, "retry_after": 30}
        httpx.post(f"{sandbox.url}/__faults", json=fault).raise_for_status()
        with pytest.raises(error):
            fetched(client, "sleep", "2026-11-01", "2026-11-02")
        sandbox.app.state.faults.clear()
    with pytest.raises(ValueError, match="filled from other objects"):
        fetched(client, "sleep_sample", "2026-11-01", "2026-11-02")


# Webhook -------------------------------------------------------------------------------------------------

WEBHOOK = PROVIDER.webhook
assert WEBHOOK is not None


def request(body: bytes, headers: dict[str, tuple[str, ...]] | None = None) -> WebhookRequest:
    return WebhookRequest("POST", "/hook", {}, headers or {}, body, NOW)


def test_calls_of_the_sandbox_are_proved_and_mutations_refused(sandbox: RunningSandbox) -> None:
    calls = sandbox.app.state.apis["polar"].webhooks("ada", dt.date(2026, 11, 4), "secret")
    told = set()
    for call in calls:
        headers = {name.lower(): (value,) for name, value in call.headers.items()}
        signature = headers["polar-webhook-signature"]
        verify = WEBHOOK.verify
        assert verify is not None
        assert verify(request(call.body, headers), ["other", "secret"])
        assert not verify(request(call.body + b" ", headers), ["secret"])
        assert not verify(request(call.body, headers), ["other"])
        assert not verify(request(call.body, headers), [])
        assert not verify(request(call.body), ["secret"])
        assert not verify(request(call.body, {"polar-webhook-signature": signature * 2}), ["secret"])
        assert not verify(
            request(call.body, {"polar-webhook-signature": ("é" + signature[0][1:],)}), ["secret"]
        )
        told |= {(event.entity, event.window) for event in WEBHOOK.events(call.body)}
    day = Window(dt.date(2026, 11, 4), dt.date(2026, 11, 4))
    names = ("activity", "activity_samples", "sleep", "nightly_recharge", "continuous_heart_rate")
    assert told == {(name, day) for name in names}


def test_ping_is_answered_and_other_bodies_are_no_handshake() -> None:
    assert WEBHOOK.challenge is not None
    ping = b'{"timestamp": "2026-11-04T12:00:00Z", "event": "PING"}'
    assert WEBHOOK.challenge(request(ping), []) == (200, "text/plain", b"")
    for body in (b"", b"[]", b'{"event": "SLEEP"}'):
        assert WEBHOOK.challenge(request(body), []) is None


def test_events_with_a_span_an_id_or_nothing() -> None:
    (span,) = WEBHOOK.events(
        b'{"event":"CONTINUOUS_HEART_RATE","user_id":7,"from":"2026-11-03","to":"2026-11-04"}'
    )
    assert span.window == Window(dt.date(2026, 11, 3), dt.date(2026, 11, 4))
    (exercise,) = WEBHOOK.events(b'{"event":"EXERCISE","user_id":7,"entity_id":"aQlC83"}')
    assert (exercise.record_ids, exercise.window, exercise.provider_user_id) == (("aQlC83",), None, "7")
    (other,) = WEBHOOK.events(b'{"event":"SLEEP_WISE_ALERTNESS","user_id":7}')
    assert (other.kind, other.entity) == ("other", None)
    for body in (b"", b"[]", b"{}", b'{"event":"SLEEP","date":"soon"}'):
        with pytest.raises(ValueError, match=r"."):
            WEBHOOK.events(body)


def test_declaration() -> None:
    assert PROVIDER.oauth is not None
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        assert entity.endpoint is None or entity.scope in PROVIDER.oauth.scopes
