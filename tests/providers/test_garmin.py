"""Garmin: real pushes, damaged ones, states, epochs; fetching, callbacks and backfill over HTTP; webhook events."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers import garmin
from health_pipeline.providers.base import Event, Parsed, RawDocument, Window
from health_pipeline.providers.garmin import PROVIDER, Backfill, request_backfill
from health_pipeline.providers.http import (
    ApiClient,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
    RequestRejectedError,
)
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "garmin_health_push"
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real Garmin payloads at {REAL}")


def parse(entity: str, records: Any, user: str | None = None) -> Parsed:
    content = records if isinstance(records, bytes) else orjson.dumps(records)
    context = {} if user is None else {"provider_user_id": user}
    parsed = garmin.parse(RawDocument(entity, content, NOW, context=context))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def at(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


DAILY = {
    "userId": "u-1",
    "summaryId": "x1-d",
    "startTimeInSeconds": 1795212000,
    "startTimeOffsetInSeconds": 7200,
    "durationInSeconds": 86400,
    "calendarDate": "2026-11-21",
    "steps": 8123,
    "restingHeartRateInBeatsPerMinute": 51,
    "averageHeartRateInBeatsPerMinute": 66,
    "averageStressLevel": -1,
    "timeOffsetHeartRateSamples": {"0": 61, "15": 62, "30": None, "45": 0},
}
SLEEP = {
    "userId": "u-1",
    "summaryId": "x1-s",
    "startTimeInSeconds": 1795212000,
    "startTimeOffsetInSeconds": -19800,
    "durationInSeconds": 27000,
    "deepSleepDurationInSeconds": 5400,
    "remSleepInSeconds": 6000,
    "sleepLevelsMap": {
        "deep": [{"startTimeInSeconds": 1795212000, "endTimeInSeconds": 1795217400}],
        "rem": [],
    },
    "validation": "AUTO_FINAL",
    "overallSleepScore": {"value": 78, "qualifierKey": "FAIR"},
    "timeOffsetSleepRespiration": {"0": 14.0, "60": 15.0, "120": -1},
    "naps": [
        {"napStartTimeInSeconds": 1795250000, "napDurationInSeconds": 1800, "napOffsetInSeconds": -19800}
    ],
}
STRESS = {
    "userId": "u-1",
    "summaryId": "x1-st",
    "startTimeInSeconds": 1795212000,
    "startTimeOffsetInSeconds": 0,
    "calendarDate": "2026-11-20",
    "timeOffsetStressLevelValues": {"0": 25, "180": -1, "360": -2, "540": 0},
    "timeOffsetBodyBatteryValues": {"0": 60},
}
EPOCH = {
    "summaryId": "x1-5a-6",
    "startTimeInSeconds": 1795212000,
    "startTimeOffsetInSeconds": 3600,
    "durationInSeconds": 900,
    "activityType": "WALKING",
    "steps": 310,
    "distanceInMeters": 240.5,
}
ACTIVITY = {
    "summary": {
        "startTimeInSeconds": 1795212000,
        "startTimeOffsetInSeconds": 3600,
        "durationInSeconds": 60,
        "activityType": "RUNNING",
    },
    "summaryId": "77-detail",
    "activityId": 77,
    "samples": [
        {"startTimeInSeconds": 1795212000, "heartRate": 140, "latitudeInDegree": 1.0},
        {"startTimeInSeconds": 1795212001.5, "speedMetersPerSecond": 3},
    ],
}
SNAPSHOT = {
    "summaryId": "x1-h",
    "startTimeInSeconds": 1795212000,
    "offsetStartTimeInSeconds": 3600,
    "durationInSeconds": 120,
    "calendarDate": "2026-11-21",
    "summaries": [
        {
            "summaryType": "heart_rate",
            "minValue": 60,
            "maxValue": 70,
            "avgValue": 64.5,
            "epochSummaries": {"0": 60},
        },
        {"summaryType": "stress", "avgValue": 20, "epochSummaries": {"0": 20, "60": -1}},
        {"summaryType": "rmssd_hrv", "avgValue": 41},
    ],
}


# Real payloads -------------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize(
    ("file", "entity", "counts"),
    [
        ("dailies", "dailies", {"dailies": 2, "sample": 16}),
        ("epoch", "epochs", {"epochs": 1}),
        ("sleeps", "sleeps", {"sleeps": 2, "sleep_level": 7, "nap": 0, "sample": 10}),
        ("hrv", "hrv", {"hrv": 1, "sample": 12}),
        ("stress", "stress_details", {"stress_details": 1, "sample": 7}),
        ("activities", "activities", {"activities": 2}),
        ("body_comps", "body_comps", {"body_comps": 2}),
    ],
)
def test_real_push_is_read_as_a_whole_and_by_person(file: str, entity: str, counts: dict[str, int]) -> None:
    content = (REAL / f"{file}.json").read_bytes()
    parsed = parse(entity, content)
    assert {name: table.num_rows for name, table in parsed.tables.items()} == counts
    assert (parsed.quarantine.num_rows, parsed.notes, dict(parsed.skipped)) == (0, (), {})
    people = [record["userId"] for records in json.loads(content).values() for record in records]
    assert [event.provider_user_id for event in garmin.events(content)] == people
    for person in people:
        of_person = parse(entity, content, person)
        assert (of_person.records_in, of_person.records_loaded) == (len(people), 1)
        assert of_person.skipped.get("other_user", 0) == len(people) - 1


@needs_real
def test_real_values_and_the_places_of_real_samples() -> None:
    first, second = rows(parse("dailies", (REAL / "dailies.json").read_bytes()), "dailies")
    assert (first["day"], second["day"]) == (dt.date(2016, 1, 11), None)
    assert (first["recorded_at"], first["utc_offset_minutes"]) == (at(1452470400), 60)
    assert (first["average_stress_level"], first["high_stress_seconds"]) == (43, 108000)
    assert (first["resting_heart_rate_bpm"], second["resting_heart_rate_bpm"]) == (None, 64)
    assert (first["seven_day_heart_rate_bpm"], first["basal_energy_kcal"]) == (64, 1731)
    parsed = parse("sleeps", (REAL / "sleeps.json").read_bytes(), "sub-2")
    (night,) = rows(parsed, "sleeps")
    assert (night["sleep_score"], night["rem_sleep_seconds"], night["validation"]) == (87, 2142, "DEVICE")
    assert night["average_breath_per_minute"] == pytest.approx((15.31 + 14.58 + 12.73) / 3)
    assert night["average_spo2_percent"] == pytest.approx(666 / 7)
    hrv = rows(parse("hrv", (REAL / "hrv.json").read_bytes()), "sample")
    assert (hrv[0]["recorded_at"], hrv[0]["value"], hrv[0]["kind"]) == (at(1653976004 + 300), 32, "hrv")
    (scale, _) = rows(parse("body_comps", (REAL / "body_comps.json").read_bytes()), "body_comps")
    assert (scale["weight_g"], scale["body_water_percent"], scale["recorded_at"]) == (
        75450,
        59.4,
        at(1439741130),
    )


@needs_real
def test_placeholder_bodies_of_every_kind_are_read() -> None:
    spec = json.loads((SHARED / "providers" / "specs" / "garmin.json").read_text())
    entities = {key: name for name, summary in garmin.SUMMARIES.items() for key in summary.keys}
    seen = 0
    for key, body in spec["placeholder_push_bodies"].items():
        (event,) = garmin.events(orjson.dumps(body))
        if key in entities:
            parsed = parse(entities[key], body, "USER-PLACEHOLDER-1")
            assert (parsed.records_loaded, parsed.notes, event.kind) == (1, (), "data"), key
            seen += 1
    assert seen == 10


# Reading -------------------------------------------------------------------------------------------------


def test_pulled_arrays_and_pushed_bodies_give_the_same_rows() -> None:
    pulled = parse("sleeps", [SLEEP])
    pushed = parse("sleeps", {"dailies": [DAILY], "sleeps": [SLEEP]}, "u-1")
    assert pulled.tables == pushed.tables
    assert (pushed.records_in, pushed.skipped) == (1, {})
    assert rows(parse("pulse_ox", {"pulseOx": []}), "pulse_ox") == []
    assert parse("activities", {"manuallyUpdatedActivities": []}).records_in == 0


def test_daily_values_and_its_series() -> None:
    parsed = parse("dailies", [DAILY])
    (daily,) = rows(parsed, "dailies")
    assert (daily["recorded_at"], daily["utc_offset_minutes"]) == (at(1795212000), 120)
    assert (daily["steps"], daily["seven_day_heart_rate_bpm"], daily["average_stress_level"]) == (
        8123,
        66,
        -1,
    )
    assert [
        (row["kind"], row["recorded_at"], row["day"], row["value"]) for row in rows(parsed, "sample")
    ] == [
        ("heart_rate", at(1795212000), dt.date(2026, 11, 21), 61),
        ("heart_rate", at(1795212015), dt.date(2026, 11, 21), 62),
        ("heart_rate_state", at(1795212045), dt.date(2026, 11, 21), 0),
    ]


def test_negative_stress_is_a_state_and_not_a_number() -> None:
    found = [(row["kind"], row["value"]) for row in rows(parse("stress_details", [STRESS]), "sample")]
    assert found == [
        ("stress", 25),
        ("stress_state", -1),
        ("stress_state", -2),
        ("stress", 0),
        ("body_battery", 60),
    ]


def test_night_with_its_levels_its_nap_and_half_hour_offset() -> None:
    parsed = parse("sleeps", [SLEEP])
    (night,) = rows(parsed, "sleeps")
    assert (night["utc_offset_minutes"], night["average_breath_per_minute"]) == (-330, 14.5)
    assert (night["light_sleep_seconds"], night["average_spo2_percent"]) == (None, None)
    assert rows(parsed, "sleep_level") == [
        {"summary_id": "x1-s", "level": "deep", "recorded_at": at(1795212000), "ended_at": at(1795217400)}
    ]
    (nap,) = rows(parsed, "nap")
    assert (nap["recorded_at"], nap["duration_seconds"]) == (at(1795250000), 1800)


def test_of_two_versions_in_one_body_the_last_counts_and_a_refused_one_does_not() -> None:
    tentative = {**SLEEP, "validation": "AUTO_TENTATIVE"}
    other = {**SLEEP, "userId": "u-2"}
    parsed = parse("sleeps", [tentative, other, SLEEP, {**SLEEP, "durationInSeconds": "long"}])
    assert [row["validation"] for row in rows(parsed, "sleeps")] == ["AUTO_FINAL", "AUTO_FINAL"]
    assert (parsed.records_loaded, parsed.skipped, parsed.quarantine.num_rows) == (2, {"superseded": 1}, 1)
    assert parsed.tables["nap"].num_rows == 2


def test_activity_samples_leave_places_in_raw() -> None:
    parsed = parse("activity_details", [ACTIVITY])
    (activity,) = rows(parsed, "activity_details")
    assert (activity["activity_id"], activity["recorded_at"]) == ("77", at(1795212000))
    first, second = rows(parsed, "activity_sample")
    assert (first["heart_rate_bpm"], first["utc_offset_minutes"]) == (140, 60)
    assert (second["recorded_at"], second["speed_m_per_s"]) == (at(1795212001.5), 3)
    assert not any("latitude" in name for name in first)


def test_health_snapshot_measures_and_series() -> None:
    parsed = parse("health_snapshots", [SNAPSHOT])
    assert rows(parsed, "health_snapshots")[0]["utc_offset_minutes"] == 60
    measures = {
        row["kind"]: (row["minimum"], row["average"]) for row in rows(parsed, "health_snapshot_measure")
    }
    assert measures == {"heart_rate": (60, 64.5), "stress": (None, 20), "rmssd_hrv": (None, 41)}
    assert [(row["kind"], row["value"]) for row in rows(parsed, "sample")] == [
        ("snapshot_heart_rate", 60),
        ("snapshot_stress", 20),
        ("snapshot_stress_state", -1),
    ]


def test_other_spellings_are_read() -> None:
    old = {**DAILY, "averageStresslevel": 43}
    del old["averageStressLevel"]
    assert rows(parse("dailies", [old]), "dailies")[0]["average_stress_level"] == 43
    breath = {**EPOCH, "timeOffsetRespirationValues": {"0": 14.5}}
    parsed = parse("respiration", [breath])
    assert [(row["kind"], row["value"]) for row in rows(parsed, "sample")] == [("respiration", 14.5)]


def replaced(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *parents, leaf = path.split(".")
    node = record
    for step in parents:
        node = node[step]
    node[leaf] = value
    return record


@pytest.mark.parametrize(
    ("entity", "record", "path", "value", "reason", "field"),
    [
        ("dailies", DAILY, "summaryId", None, "missing_field", "summaryId"),
        ("dailies", DAILY, "summaryId", 7, "wrong_type", "summaryId"),
        ("dailies", DAILY, "startTimeInSeconds", None, "missing_field", "startTimeInSeconds"),
        ("dailies", DAILY, "startTimeInSeconds", "1795212000", "wrong_type", "startTimeInSeconds"),
        ("dailies", DAILY, "startTimeInSeconds", 1795212000000, "wrong_type", "startTimeInSeconds"),
        ("dailies", DAILY, "startTimeInSeconds", -5, "wrong_type", "startTimeInSeconds"),
        ("dailies", DAILY, "startTimeOffsetInSeconds", 90000, "wrong_type", "startTimeOffsetInSeconds"),
        ("dailies", DAILY, "calendarDate", "21.11.2026", "wrong_type", "calendarDate"),
        ("dailies", DAILY, "steps", "8123", "wrong_type", "steps"),
        ("dailies", DAILY, "steps", 1.5, "wrong_type", "steps"),
        *(
            (
                "dailies",
                DAILY,
                "timeOffsetHeartRateSamples",
                value,
                "wrong_type",
                "timeOffsetHeartRateSamples",
            )
            for value in ([61], {"x": 61}, {"15": "61"}, {"15": True}, {"9999999": 61})
        ),
        ("epochs", EPOCH, "durationInSeconds", None, "missing_field", "durationInSeconds"),
        *(
            ("sleeps", SLEEP, "sleepLevelsMap", value, "wrong_type", "sleepLevelsMap")
            for value in ([], {"deep": {}}, {"deep": [{"startTimeInSeconds": 5}]}, {"deep": ["x"]})
        ),
        *(
            ("sleeps", SLEEP, "naps", value, "wrong_type", "naps")
            for value in ({}, [{"napStartTimeInSeconds": 5}], [7])
        ),
        ("activity_details", ACTIVITY, "samples", [{"heartRate": 90}], "wrong_type", "samples"),
        ("activity_details", ACTIVITY, "summary", "x", "wrong_type", "summary"),
        ("activity_details", ACTIVITY, "activityId", [], "wrong_type", "activityId"),
        ("health_snapshots", SNAPSHOT, "summaries", [{"avgValue": 1}], "wrong_type", "summaries"),
        ("health_snapshots", SNAPSHOT, "summaries", ["x"], "wrong_type", "summaries"),
    ],
)
def test_what_does_not_fit_is_quarantined_alone(
    entity: str, record: dict[str, Any], path: str, value: Any, reason: str, field: str
) -> None:
    bad = {**replaced(record, path, value)}
    good = {**record, "summaryId": "good"}
    parsed = parse(entity, [bad, good])
    assert [row["summary_id"] for row in rows(parsed, entity)] == ["good"]
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["field"], refused["location"]) == (reason, field, "$[0]")


def test_location_counts_other_peoples_records_and_pings_too() -> None:
    ping = {"userId": "u-1", "callbackURL": "https://apis.garmin.com/wellness-api/rest/dailies"}
    body = {"dailies": [{**DAILY, "userId": "u-2"}, ping, {**DAILY, "steps": "x"}, 7]}
    parsed = parse("dailies", body, "u-1")
    assert parsed.quarantine["location"].to_pylist() == ["dailies[2]", "dailies[3]"]
    assert parsed.skipped == {"other_user": 1, "ping": 1}
    assert "u-2" not in str(parsed.quarantine.to_pylist())


def test_new_fields_are_noted_and_left_alone() -> None:
    parsed = parse("sleeps", [{**SLEEP, "mood": 3, "sleepScores": {"stress": {}}}])
    assert (parsed.notes, parsed.records_loaded) == (("sleeps: new field mood",), 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b'[{"a": ',
        b'{"errorMessage": "x"}',
        b'{"sleeps": {}}',
        b"null",
        b"7",
        b'{"dailies": []}',
    ],
)
def test_malformed_body_is_one_quarantine_row(content: bytes) -> None:
    parsed = parse("sleeps", content)
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["location"], parsed.records_in) == ("malformed_body", "$", 1)


def test_entity_without_bodies_is_refused() -> None:
    with pytest.raises(KeyError):
        parse("sample", [])


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=4)
    | st.sampled_from(["2026-11-20", 1795212000, "15"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["0", "15", "deep", "a"]), inner)
    ),
    max_leaves=5,
)
SHAPES = {
    "dailies": DAILY,
    "sleeps": SLEEP,
    "stress_details": STRESS,
    "activity_details": ACTIVITY,
    "health_snapshots": SNAPSHOT,
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, list[Any], list[bool]]:
    entity = draw(st.sampled_from(sorted(SHAPES)))
    records: list[Any] = []
    whole = []
    for number in range(draw(st.integers(1, 4))):
        record: Any = {**copy.deepcopy(SHAPES[entity]), "summaryId": f"id-{number}"}
        damage = draw(st.sampled_from(["none", "replace", "remove", "junk"]))
        if damage == "junk":
            record = draw(JUNK)
        elif damage == "replace":
            record[draw(st.sampled_from(sorted(record)))] = draw(JUNK)
        elif damage == "remove":
            del record[draw(st.sampled_from(sorted(record)))]
        records.append(record)
        whole.append(damage == "none")
    return entity, records, whole


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies())
def test_whatever_the_damage_records_add_up_and_good_ones_are_unharmed(body: Any) -> None:
    entity, records, whole = body
    parsed = parse(entity, records)
    assert parsed.records_in == len(records)
    assert parsed.records_loaded == parsed.tables.get(entity, pa.table({})).num_rows
    loaded = {row["summary_id"] for row in rows(parsed, entity)}
    assert {f"id-{number}" for number, good in enumerate(whole) if good} <= loaded


# Webhooks ------------------------------------------------------------------------------------------------


def test_events_of_a_push_with_several_people_and_kinds() -> None:
    found = garmin.events(
        orjson.dumps(
            {
                "dailies": [
                    DAILY,
                    {**DAILY, "userId": "u-2", "summaryId": "b", "calendarDate": "2026-11-19"},
                    {**DAILY, "summaryId": "c", "calendarDate": "2026-11-18"},
                    {"summaryId": "nobody's"},
                    "junk",
                ],
                "sleeps": [SLEEP],
                "activityDetails": [{**ACTIVITY, "userId": "u-2"}],
                "moveIQActivities": [{"userId": "u-2", "summaryId": "m"}],
                "deregistrations": [{"userId": "u-3"}],
                "userPermissionsChange": [{"userId": "u-2", "permissions": []}],
            }
        )
    )
    day = dt.date(2026, 11, 18)
    assert found == (
        Event(
            "dailies",
            "data",
            "u-1",
            entity="dailies",
            window=Window(day, dt.date(2026, 11, 21)),
            record_ids=("x1-d", "c"),
        ),
        Event(
            "dailies",
            "data",
            "u-2",
            entity="dailies",
            window=Window(dt.date(2026, 11, 19), dt.date(2026, 11, 19)),
            record_ids=("b",),
        ),
        Event("dailies", "other", None, entity="dailies"),
        Event(
            "sleeps",
            "data",
            "u-1",
            entity="sleeps",
            window=Window(dt.date(2026, 11, 20), dt.date(2026, 11, 20)),
            record_ids=("x1-s",),
        ),
        Event(
            "activityDetails",
            "data",
            "u-2",
            entity="activity_details",
            window=Window(dt.date(2026, 11, 20), dt.date(2026, 11, 20)),
            record_ids=("77-detail",),
        ),
        Event("moveIQActivities", "other", "u-2"),
        Event("deregistrations", "deauthorized", "u-3"),
        Event("userPermissionsChange", "other", "u-2"),
    )


def test_events_of_pings_hold_the_address_and_do_not_show_it() -> None:
    url = (
        "https://apis.garmin.com/wellness-api/rest/pulseOx"
        "?uploadStartTimeInSeconds=1795219200&uploadEndTimeInSeconds=1795305600&token=s3cret"
    )
    (event, second, third) = garmin.events(
        orjson.dumps({"pulseox": [{"userId": "u", "callbackURL": link} for link in (url, "http://[x", 7)]})
    )
    assert (event.kind, event.entity, event.callback_url) == ("changed", "pulse_ox", url)
    assert event.window == Window(dt.date(2026, 11, 21), dt.date(2026, 11, 22))
    assert "s3cret" not in repr(event)
    assert (second.kind, second.window, third.kind) == ("changed", None, "other")


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b'{"dailies": {}}', b'{"dailies": [], "a": 1}'])
def test_body_that_is_no_object_of_arrays_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="body"):
        garmin.events(body)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["dailies", "activityDetails", "deregistrations", "x"]), st.lists(JUNK, max_size=3)
    )
)
def test_any_object_of_arrays_gives_events(body: Any) -> None:
    assert all(isinstance(event, Event) for event in garmin.events(orjson.dumps(body)))


# Over HTTP -----------------------------------------------------------------------------------------------

Connect = Callable[..., ApiClient]


@pytest.fixture(scope="module")
def garmin_sandbox() -> Iterator[RunningSandbox]:
    with run_in_thread(now=lambda: NOW) as running:
        yield running


@pytest.fixture
def box(garmin_sandbox: RunningSandbox) -> RunningSandbox:
    api = garmin_sandbox.app.state.apis["garmin"]
    garmin_sandbox.app.state.faults.clear()
    garmin_sandbox.app.state.faults.requests.clear()
    api.backfills.clear()
    api.requires_pull_token = False
    return garmin_sandbox


@pytest.fixture
def connect(box: RunningSandbox) -> Iterator[Connect]:
    clients: list[ApiClient] = []

    def start(handle: str = "ada", scopes: str | None = None, **options: Any) -> ApiClient:
        with httpx.Client(base_url=f"{box.url}/garmin") as http:
            back = "http://localhost/back"
            asked = {
                "client_id": "sandbox",
                "redirect_uri": back,
                "response_type": "code",
                "login_hint": handle,
                # S256 of "v".
                "code_challenge": "TJRIXgwhrmxBzh3-e2v6zupato5AokdvUCCOUm9QYIA",
                "code_challenge_method": "S256",
            }
            if scopes is not None:
                asked["scope"] = scopes
            answer = http.get("/oauth2Confirm", params=asked)
            token = http.post(
                "/di-oauth2-service/oauth/token",
                data={
                    "grant_type": "authorization_code",
                    "code": httpx.URL(answer.headers["location"]).params["code"],
                    "redirect_uri": back,
                    "client_id": "sandbox",
                    "client_secret": "sandbox-secret",
                    "code_verifier": "v",
                },
            ).json()
        client = ApiClient(
            *("garmin", f"{box.url}/garmin", lambda _: token["access_token"]),
            **{"interpret": PROVIDER.interpret, **options},
        )
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()


def asked_paths(box: RunningSandbox) -> dict[str, int]:
    counted = box.app.state.faults.requests
    return {path.removeprefix("/garmin/"): n for (_, _, path, _), n in counted.items() if "rest/" in path}


DAY = Window(dt.date(2026, 11, 10), dt.date(2026, 11, 10))


def test_a_day_is_fetched_with_what_was_uploaded_two_days_later_24_hours_a_page(
    box: RunningSandbox, connect: Connect
) -> None:
    client = connect()
    box.app.state.faults.requests.clear()
    pages = list(garmin.fetch(client, PROVIDER.entity("dailies"), DAY))
    assert asked_paths(box) == {"wellness-api/rest/dailies": 4}
    assert {(page.entity, page.window) for page in pages} == {("dailies", DAY)}
    versions = [
        row
        for page in pages
        for row in rows(parse("dailies", page.content), "dailies")
        if row["day"] == DAY.start
    ]
    assert [row["duration_seconds"] for row in versions][-1] == 86_400
    assert versions[0]["duration_seconds"] < 86_400
    assert len({row["summary_id"] for row in versions}) == 1


def test_every_entity_is_read_without_loss(connect: Connect) -> None:
    client = connect("ada")
    window = Window(dt.date(2026, 11, 3), dt.date(2026, 11, 5))
    for entity in PROVIDER.entities:
        if entity.endpoint is None:
            with pytest.raises(ValueError, match="filled from other objects"):
                next(garmin.fetch(client, entity, window))
            continue
        pages = list(garmin.fetch(client, entity, window))
        found = [parse(entity.name, page.content) for page in pages]
        assert sum(parsed.records_loaded for parsed in found) > 0, entity.name
        assert all(not parsed.quarantine.num_rows and parsed.notes == () for parsed in found), entity.name


def test_live_endpoints_that_want_a_pings_token_say_so(box: RunningSandbox, connect: Connect) -> None:
    box.app.state.apis["garmin"].requires_pull_token = True
    with pytest.raises(RequestRejectedError, match="wait for its webhook"):
        next(garmin.fetch(connect(), PROVIDER.entity("dailies"), DAY))


def test_a_pings_address_is_followed(box: RunningSandbox, connect: Connect) -> None:
    api = box.app.state.apis["garmin"]
    api.requires_pull_token = True
    client = connect()
    garmin.identify(client)
    (call,) = [
        call for call in api.webhooks("ada", dt.date(2026, 11, 10), "id") if b"callbackURL" in call.body
    ][:1]
    event = next(event for event in garmin.events(call.body) if event.entity == "activities")
    assert event.callback_url is not None and event.window is not None
    page = garmin.fetch_callback(client, PROVIDER.entity("activities"), event.callback_url, event.window)
    assert [row["activity_type"] for row in rows(parse("activities", page.content), "activities")] == [
        "RUNNING"
    ]
    # Good for its own span of time, and for 24 hours.
    others = event.callback_url.replace("uploadEndTimeInSeconds=", "uploadEndTimeInSeconds=1")
    with pytest.raises(RequestRejectedError):
        garmin.fetch_callback(client, PROVIDER.entity("activities"), others, event.window)
    box.app.state.sandbox.fix_time(NOW + dt.timedelta(hours=25))
    try:
        with pytest.raises(RequestRejectedError, match="last 24 hours"):
            garmin.fetch_callback(connect(), PROVIDER.entity("activities"), event.callback_url, event.window)
    finally:
        box.app.state.sandbox.fix_time(None)


@pytest.mark.parametrize(
    "url",
    [
        "https://apis.garmin.com.evil.example/wellness-api/rest/dailies",
        "https://evil.example/wellness-api/rest/dailies",
        "http://apis.garmin.com/wellness-api/rest/dailies",
        "https://apis.garmin.com:8443/wellness-api/rest/dailies",
        "https://user:pw@apis.garmin.com/wellness-api/rest/dailies",
        "https://apis.garmin.com/wellness-api/rest/../../partner-gateway/rest/user/id",
        "https://apis.garmin.com/wellness-api/rest/%2e%2e/x",
        "https://apis.garmin.com/partner-gateway/rest/user/registration",
        "https://apis.garmin.com/wellness-api/rest/dailies#x",
        "https://apis.garmin.com/x/wellness-api/rest/dailies",
        "//apis.garmin.com/wellness-api/rest/dailies",
        "/wellness-api/rest/dailies",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[",
        "",
    ],
)
def test_no_other_address_is_followed(url: str) -> None:
    def never(_: bool) -> str:
        raise AssertionError("a token was asked for")

    with ApiClient("garmin", "https://apis.garmin.com", never) as client:
        with pytest.raises(RequestRejectedError, match="not one of this provider's"):
            garmin.fetch_callback(client, PROVIDER.entity("dailies"), url, DAY)
        # And the good one is.
        with pytest.raises(AssertionError, match="a token was asked for"):
            good = "https://apis.garmin.com/wellness-api/rest/dailies?token=a/../b"
            garmin.fetch_callback(client, PROVIDER.entity("dailies"), good, DAY)


def test_backfill_asks_30_days_at_a_time_without_overlap_and_once(
    box: RunningSandbox, connect: Connect
) -> None:
    client = connect()
    window = Window(dt.date(2026, 8, 1), dt.date(2026, 9, 30))
    assert request_backfill(client, "pulse_ox", window) == Backfill(accepted=3, duplicate=0)
    spans = [
        (start, end) for _, kind, start, end in box.app.state.apis["garmin"].backfills if kind == "pulseox"
    ]
    assert spans[0][0] <= dt.datetime(2026, 7, 31, 10, tzinfo=dt.UTC).timestamp()
    assert spans[-1][1] >= dt.datetime(2026, 10, 1, 12, tzinfo=dt.UTC).timestamp()
    assert all(end - start <= 30 * 86_400 for start, end in spans)
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert request_backfill(client, "pulse_ox", window) == Backfill(accepted=0, duplicate=3)
    assert request_backfill(client, "activities", window) == Backfill(accepted=3, duplicate=0)


def test_backfilled_days_come_by_push(box: RunningSandbox, connect: Connect) -> None:
    request_backfill(connect(), "dailies", Window(dt.date(2026, 9, 1), dt.date(2026, 9, 3)))
    body = box.app.state.apis["garmin"].backfill_pushes("ada")
    (event,) = garmin.events(orjson.dumps(body))
    days = {row["day"] for row in rows(parse("dailies", body, event.provider_user_id), "dailies")}
    assert days >= {dt.date(2026, 9, 1), dt.date(2026, 9, 2), dt.date(2026, 9, 3)}


def test_backfill_refusals_are_told_apart(box: RunningSandbox, connect: Connect) -> None:
    early = Window(dt.date(2024, 1, 5), dt.date(2024, 1, 6))
    with pytest.raises(PermissionMissingError, match="historical data"):
        request_backfill(connect(scopes="HEALTH_EXPORT"), "dailies", DAY)
    with pytest.raises(PermissionMissingError, match="this kind of data"):
        request_backfill(connect(scopes="HEALTH_EXPORT HISTORICAL_DATA_EXPORT"), "activities", DAY)
    with pytest.raises(RequestRejectedError, match="no backfill of these days"):
        request_backfill(connect(), "dailies", early)
    with pytest.raises(KeyError):
        request_backfill(connect(), "no such kind", DAY)
    assert box.app.state.apis["garmin"].backfills == []


def test_429_waits_a_minute(box: RunningSandbox, connect: Connect) -> None:
    order = {"provider": "garmin", "kind": "rate_limit", "count": 1, "path_contains": "backfill"}
    httpx.post(f"{box.url}/__faults", json=order).raise_for_status()
    slept = [0.0]
    client = connect(sleep=slept.append, clock=lambda: 1e9 + sum(slept))
    assert request_backfill(client, "dailies", DAY) == Backfill(accepted=1, duplicate=0)
    assert 60 <= sum(slept) < 70
    httpx.post(f"{box.url}/__faults", json=order).raise_for_status()
    with pytest.raises(RateLimitedError):
        request_backfill(connect(max_wait=30.0), "hrv", DAY)


def test_identify_and_deregister(box: RunningSandbox, connect: Connect) -> None:
    client = connect("eli", scopes="HEALTH_EXPORT ACTIVITY_EXPORT")
    account = garmin.identify(client)
    assert account.provider_user_id == box.app.state.apis["garmin"].summaries["eli"].user_id
    assert account.profile == {"permissions": ["ACTIVITY_EXPORT", "HEALTH_EXPORT"]}
    garmin.deregister(client)
    with pytest.raises(Exception, match="reconnect"):
        garmin.identify(client)


def test_identify_without_an_id_says_so(box: RunningSandbox, connect: Connect) -> None:
    fault = {"provider": "garmin", "kind": "malformed", "path_contains": "user/id"}
    httpx.post(f"{box.url}/__faults", json=fault).raise_for_status()
    with pytest.raises(MalformedResponseError, match="no user id"):
        garmin.identify(connect())


# The declaration -----------------------------------------------------------------------------------------


def test_declaration() -> None:
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        assert entity.endpoint is None or entity.window == "upload_time"
    assert PROVIDER.oauth is not None and PROVIDER.oauth.pkce and PROVIDER.oauth.rotates_refresh_token
    assert PROVIDER.webhook is not None and PROVIDER.webhook.secret_path
