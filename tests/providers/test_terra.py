"""Terra: records and samples as staged, times of every print, and the aggregator's answers over HTTP."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import terra
from health_pipeline.providers.base import Credentials, Event, Parsed, RawDocument, WebhookRequest, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    RateLimitedError,
    RateLimiter,
    RequestRejectedError,
)
from health_pipeline.providers.terra import PROVIDER
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "terra_webhooks"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)
USER = "40f7b0e1-89e2-43ac-a5b8-1e29c8d47cad"

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real Terra payloads at {REAL}")


def parse(
    entity: str, records: list[Any] | bytes, *, provider: str = "GARMIN", zone: str | None = None
) -> Parsed:
    body = {"type": entity, "user": {"user_id": USER, "provider": provider}, "data": records}
    content = records if isinstance(records, bytes) else orjson.dumps(body)
    parsed = terra.parse(RawDocument(entity, content, RECEIVED_AT, zone))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def samples(parsed: Parsed, kind: str) -> list[tuple[str, float]]:
    found = [row for row in rows(parsed, "sample") if row["kind"] == kind]
    return [(f"{row['recorded_at']:%H:%M:%S}", row["value"]) for row in found]


def record(start: str, end: str, **rest: Any) -> dict[str, Any]:
    metadata = {"start_time": start, "end_time": end, "upload_type": 1, **rest.pop("metadata", {})}
    return {"metadata": metadata, **rest}


def day(**rest: Any) -> dict[str, Any]:
    return record("2026-07-01T00:00:00.000000+05:30", "2026-07-02T00:00:00.000000+05:30", **rest)


def at(time: str, **values: Any) -> dict[str, Any]:
    return {"timestamp": f"2026-07-01T{time}.000000+05:30", **values}


# Real payloads


@needs_real
@pytest.mark.parametrize(
    ("entity", "expected"),
    [
        (
            "daily",
            {
                "id": "GARMIN daily 2026-07-01",
                "day": dt.date(2026, 7, 1),
                "recorded_at": dt.datetime(2026, 6, 30, 23, tzinfo=dt.UTC),
                "utc_offset_minutes": 60,
                "steps": 11894,
                "distance_m": 9412.7,
                "total_burned_kcal": 2450.8,
                "activity_seconds": 5340,
            },
        ),
        (
            "sleep",
            {
                "id": "GARMIN 2026-06-30T23:12:00.000000+01:00",
                "ended_at": dt.datetime(2026, 7, 1, 6, 2, tzinfo=dt.UTC),
                "is_nap": False,
                "asleep_seconds": 25200,
                "deep_sleep_seconds": 5400,
                "rem_sleep_seconds": 5100,
                "light_sleep_seconds": None,
                "awake_seconds": 1500,
                "efficiency_percent": 91.5,
                "stages": None,
            },
        ),
        (
            "activity",
            {
                "id": "GARMIN 123e4567-e89b-12d3-a456-426614174000",
                "activity": "running",
                "recorded_at": dt.datetime(2026, 7, 1, 6, 4, 11, tzinfo=dt.UTC),
                "distance_m": 8250.4,
                "net_activity_kcal": 431.2,
                "average_heart_rate_bpm": 148.2,
                "max_heart_rate_bpm": 181,
            },
        ),
    ],
)
def test_real_payload_is_read_as_it_stands(entity: str, expected: dict[str, Any]) -> None:
    parsed = parse(entity, (REAL / f"{entity}.json").read_bytes())
    assert (parsed.records_in, parsed.records_loaded, parsed.notes) == (1, 1, ())
    (row,) = rows(parsed, entity)
    assert {name: row[name] for name in expected} == expected
    assert row["device"] == "GARMIN"


@needs_real
@pytest.mark.parametrize(
    ("file", "kind", "window"),
    [
        ("access_revoked", "deauthorized", None),
        ("deauth", "deauthorized", None),
        ("auth_authSuccess", "other", None),
        ("athlete", "other", None),
        ("connection_error", "other", None),
        ("large_request_processing", "other", None),
        ("large_request_sending", "other", None),
        ("lab_report_completed", "other", None),
        ("activity", "data", Window(dt.date(2026, 7, 1), dt.date(2026, 7, 1))),
        ("daily", "data", Window(dt.date(2026, 7, 1), dt.date(2026, 7, 2))),
        ("sleep", "data", Window(dt.date(2026, 6, 30), dt.date(2026, 7, 1))),
    ],
)
def test_real_events_say_what_is_to_be_done(file: str, kind: str, window: Window | None) -> None:
    (event,) = terra.events((REAL / f"{file}.json").read_bytes())
    assert (event.kind, event.window) == (kind, window)
    assert event.entity == (file if kind == "data" else None)
    lab = file.startswith("lab_report")
    assert event.provider_user_id == (None if lab else USER)
    assert event.event_id == ("evt_4a2b8c1d-3f9e-4c0a-8b21-9d6e5f2a1c7b" if lab else None)


# Records and samples


def test_every_kind_of_sample_keeps_its_time_value_and_device() -> None:
    heart = {
        "summary": {"avg_hrv_sdnn": 40},
        "detailed": {
            "hr_samples": [at("08:00:00", bpm=61), at("08:01:00", bpm=None), at("08:02:00", bpm=63.5)],
            "hrv_samples_rmssd": [at("03:00:00", hrv_rmssd=48.2)],
            "hrv_samples_sdnn": [at("03:05:00", hrv_sdnn=71)],
        },
    }
    oxygen = [at("02:00:00", percentage=96, type=0), at("02:10:00", percentage=61, type=1)]
    parsed = parse(
        "daily",
        [
            day(
                heart_rate_data=heart,
                oxygen_data={"saturation_samples": [*oxygen, at("02:20:00", percentage=97)]},
                stress_data={"body_battery_samples": [at("09:00:00", level=80)]},
                device_data={"name": "Garmin Forerunner 255"},
            )
        ],
    )
    assert samples(parsed, "heart_rate") == [("02:30:00", 61), ("02:32:00", 63.5)]
    assert samples(parsed, "hrv_rmssd") == [("21:30:00", 48.2)]
    assert samples(parsed, "hrv_sdnn") == [("21:35:00", 71)]
    # The oxygen of a muscle is not the blood's.
    assert samples(parsed, "spo2") == [("20:30:00", 96), ("20:50:00", 97)]
    assert samples(parsed, "body_battery") == [("03:30:00", 80)]
    assert {row["device"] for row in rows(parsed, "sample")} == {"GARMIN Forerunner 255"}
    assert {row["utc_offset_minutes"] for row in rows(parsed, "sample")} == {330}
    (row,) = rows(parsed, "daily")
    assert (row["spo2_samples"], row["hrv_sdnn_samples"], row["vo2_max_samples"]) == (2, 1, 0)
    assert parsed.notes == ()


def test_scales_and_cuffs_give_a_sample_a_value() -> None:
    measurement = {"weight_kg": 70.2, "height_cm": 172, "bone_mass_g": 3100, "urine_color": "x"}
    parsed = parse(
        "body",
        [
            day(
                measurements_data={
                    "measurements": [{"measurement_time": "2026-07-01T07:00:00+05:30", **measurement}]
                },
                blood_pressure_data={
                    "blood_pressure_samples": [at("07:05:00", systolic_bp=121, diastolic_bp=79)]
                },
                temperature_data={"skin_temperature_samples": [at("03:00:00", temperature_celsius=34.1)]},
                hydration_data={"day_total_water_consumption_ml": 1500},
            )
        ],
        provider="WITHINGS",
    )
    found = {row["kind"]: row["value"] for row in rows(parsed, "sample")}
    assert found == {
        "weight_kg": 70.2,
        "height_cm": 172,
        "bone_mass_g": 3100,
        "blood_pressure_systolic": 121,
        "blood_pressure_diastolic": 79,
        "skin_temperature": 34.1,
    }
    assert {row["document_id"] for row in rows(parsed, "sample")} == {"WITHINGS body 2026-07-01"}
    assert rows(parsed, "body")[0]["water_ml"] == 1500


def test_a_hypnogram_becomes_segments_that_end_with_the_sleep() -> None:
    levels = [("00:00:30", 4), ("00:00:00", 1), ("00:10:00", 5), ("00:20:00", 5), ("00:30:00", 0)]
    levels += [("00:40:00", 6), ("00:50:00", 3)]
    night = record(
        "2026-07-01T00:00:00+05:30",
        "2026-07-01T01:00:00+05:30",
        sleep_durations_data={"hypnogram_samples": [at(time, level=level) for time, level in levels]},
    )
    plain = record("2026-07-02T00:00:00+05:30", "2026-07-02T01:00:00+05:30", metadata={"summary_id": "n2"})
    first, second = rows(parse("sleep", [night, plain]), "sleep")
    assert [tuple(part.values()) for part in json.loads(first["stages"])] == [
        ("awake", 0, 30),
        ("light", 30, 570),
        ("deep", 600, 1200),
        ("rem", 2400, 600),
        ("awake", 3000, 600),
    ]
    assert (second["id"], second["stages"]) == ("GARMIN n2", None)


def test_glucose_counts_once_an_instant_and_tells_sensors_from_strips() -> None:
    def reading(time: str, value: float, **rest: Any) -> dict[str, Any]:
        return at(time, blood_glucose_mg_per_dL=value, **rest)

    glucose = {
        "blood_glucose_samples": [reading("08:00:00", 101, trend_arrow=3), reading("08:15:00", 55.5)],
        "detailed_blood_glucose_samples": [
            reading("08:00:00", 99),
            reading("08:05:00", 104, trend_arrow=5, glucose_level_flag=1),
        ],
    }
    device = {"name": "FreeStyle Libre 3"}
    sensor = parse("body", [day(glucose_data=glucose, device_data=device)], provider="FREESTYLELIBRE")
    found = [
        (f"{r['recorded_at']:%H:%M}", r["value"], r["unit"], r["trend"], r["reading_type"], r["device"])
        for r in rows(sensor, "readings")
    ]
    libre = "FREESTYLELIBRE FreeStyle Libre 3"
    assert found == [
        ("02:30", 101, "mg/dL", "flat", "cgm", libre),
        ("02:45", 55.5, "mg/dL", None, "cgm", libre),
        ("02:35", 104, "mg/dL", "rising_quickly", "cgm", libre),
    ]
    meter = parse("body", [day(glucose_data={"blood_glucose_samples": [reading("08:00:00", 101)]})])
    assert [r["reading_type"] for r in rows(meter, "readings")] == ["strip"]
    phone = {"blood_glucose_samples": [reading("08:00:00", 101)], "sensor_usage": 280}
    assert [r["reading_type"] for r in rows(parse("body", [day(glucose_data=phone)]), "readings")] == ["cgm"]


def test_an_activity_we_have_no_word_for_keeps_its_number() -> None:
    def workout(kind: int, id_: str) -> dict[str, Any]:
        return day(metadata={"type": kind, "summary_id": id_, "upload_type": 4})

    first, second = rows(parse("activity", [workout(84, "a"), workout(999, "b")]), "activity")
    assert (first["activity"], second["activity"]) == ("open_water_swimming", "type 999")
    assert first["upload_type"] == 4


# Times


def test_local_times_without_an_offset_are_read_in_the_zone_and_refused_without_one() -> None:
    # The clocks go back in this night.
    night = record(
        "2026-10-25T00:30:00",
        "2026-10-25T07:00:00",
        heart_rate_data={"detailed": {"hr_samples": [{"timestamp": "2026-10-25T04:00:00", "bpm": 50}]}},
    )
    parsed = parse("sleep", [night], zone="Europe/London")
    (row,) = rows(parsed, "sleep")
    assert row["recorded_at"] == dt.datetime(2026, 10, 24, 23, 30, tzinfo=dt.UTC)
    assert row["ended_at"] == dt.datetime(2026, 10, 25, 7, tzinfo=dt.UTC)
    assert (row["utc_offset_minutes"], samples(parsed, "heart_rate")) == (None, [("04:00:00", 50)])
    lost = parse("sleep", [night, {**night, "metadata": day()["metadata"]}])
    (refused,) = lost.quarantine.to_pylist()
    assert (refused["reason"], refused["field"]) == ("unknown_time_zone", "metadata.start_time")
    assert (lost.records_in, lost.records_loaded) == (2, 1)
    # A sample without an offset takes its record's.
    assert samples(lost, "heart_rate") == [("22:30:00", 50)]


def test_times_printed_in_utc_say_no_offset_and_no_day() -> None:
    utc = record(
        "2026-06-30T18:30:00",
        "2026-07-01T18:30:00+00:00",
        metadata={"timestamp_localization": 0},
        distance_data={"steps": 5},
    )
    (row,) = rows(parse("daily", [utc], zone="Asia/Kolkata"), "daily")
    assert row["recorded_at"] == dt.datetime(2026, 6, 30, 18, 30, tzinfo=dt.UTC)
    assert (row["utc_offset_minutes"], row["day"], row["id"]) == (None, None, "GARMIN daily 2026-06-30")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2150, 1, 1)),
            st.integers(-14 * 60, 14 * 60),
            st.sampled_from(["seconds", "milliseconds", "microseconds"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_printed_time_is_the_instant_python_reads(moments: list[tuple[dt.datetime, int, str]]) -> None:
    texts = [
        moment.replace(tzinfo=dt.timezone(dt.timedelta(minutes=minutes))).isoformat(timespec=form)
        for moment, minutes, form in moments
    ]
    series = [{"timestamp": text, "bpm": 60} for text in texts]
    parsed = parse("daily", [day(heart_rate_data={"detailed": {"hr_samples": series}})])
    found = rows(parsed, "sample")
    assert [row["recorded_at"] for row in found] == [dt.datetime.fromisoformat(text) for text in texts]
    assert [row["utc_offset_minutes"] for row in found] == [minutes for _, minutes, _ in moments]


# What does not fit


def test_a_bad_record_or_sample_goes_alone() -> None:
    series = [at("08:00:00", bpm=60), at("08:01:00", bpm="61"), {"bpm": 62}, at("25:00:00", bpm=63), 7]
    fine = day(heart_rate_data={"detailed": {"hr_samples": series}}, distance_data={"steps": 100})
    parsed = parse(
        "daily",
        [
            fine,
            day(distance_data={"steps": "many"}),
            record("2026-07-01", "2026-07-02T00:00:00Z"),
            {"metadata": None, "distance_data": {"steps": 3}},
            "text",
            day(heart_rate_data={"detailed": {"hr_samples": {"bpm": 1}}}, distance_data={"steps": 200}),
            record("2026-07-02T00:00:00Z", "2026-07-01T00:00:00Z"),
        ],
    )
    assert [row["steps"] for row in rows(parsed, "daily")] == [100, 200]
    assert samples(parsed, "heart_rate") == [("02:30:00", 60)]
    refused = {(r["location"], r["reason"], r["field"]) for r in parsed.quarantine.to_pylist()}
    path = "heart_rate_data.detailed.hr_samples"
    assert refused == {
        ("data[1]", "wrong_type", "distance_data.steps"),
        ("data[2]", "wrong_type", "metadata.start_time"),
        ("data[3]", "missing_field", "metadata"),
        ("data[4]", "wrong_type", None),
        ("data[6]", "ends_before_start", "metadata.end_time"),
        (f"data[0].{path}[1]", "wrong_type", "bpm"),
        (f"data[0].{path}[2]", "missing_field", "timestamp"),
        (f"data[0].{path}[3]", "wrong_type", "timestamp"),
        (f"data[0].{path}[4]", "wrong_type", f"{path}[4]"),
        (f"data[5].{path}", "wrong_type", path),
    }
    assert (parsed.records_in, parsed.records_loaded) == (12, 2)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"data": {}}', b'{"status": "success"}', b"\xff{"])
def test_a_body_without_records_is_quarantined_whole(content: bytes) -> None:
    parsed = parse("body", content)
    assert [r["reason"] for r in parsed.quarantine.to_pylist()] == ["malformed_body"]
    assert (parsed.records_in, parsed.records_loaded) == (1, 0)


def test_new_fields_are_named() -> None:
    parsed = parse("daily", [day(aura={"colour": 1}, stress_data={"samples": [], "calm_seconds": 3})])
    assert parsed.notes == ("daily: new field aura", "daily: new field stress_data.calm_seconds")
    assert parsed.records_loaded == 1


# Over HTTP


WATCH = person("ada").uuid("terra", "GARMIN")


def client(
    sandbox: RunningSandbox, *, user_id: str = WATCH, key: str = "sandbox-secret", **rest: Any
) -> ApiClient:
    assert PROVIDER.authorize is not None
    headers = PROVIDER.authorize(Credentials("sandbox", key, ""))
    return ApiClient(
        "terra",
        f"{sandbox.url}/terra",
        lambda _renew: "",
        authorize=lambda _token: headers,
        interpret=PROVIDER.interpret,
        provider_user_id=user_id,
        **rest,
    )


def fault(sandbox: RunningSandbox, kind: str, **rest: Any) -> None:
    said = {"provider": "terra", "kind": kind, **rest}
    httpx.post(f"{sandbox.url}/__faults", json=said).raise_for_status()


WEEK = Window(dt.date(2026, 11, 10), dt.date(2026, 11, 16))


@pytest.mark.parametrize("entity", ["daily", "sleep", "activity", "body"])
def test_a_window_comes_whole_and_parses_clean(sandbox: RunningSandbox, entity: str) -> None:
    with client(sandbox) as api:
        pages = list(terra.fetch(api, PROVIDER.entity(entity), WEEK))
    (parsed,) = [parse(entity, page.content) for page in pages]
    assert (parsed.quarantine.num_rows, parsed.notes) == (0, ())
    days = {row["ended_at" if entity == "sleep" else "recorded_at"].date() for row in rows(parsed, entity)}
    wanted = {WEEK.start + dt.timedelta(days=n) for n in range(7)}
    truth = httpx.get(
        f"{sandbox.url}/__truth/ada", params={"start": str(WEEK.start), "end": str(WEEK.end)}
    ).json()["days"]
    if entity == "daily":
        assert days >= wanted
        assert parsed.tables["sample"].num_rows > 1500
    elif entity == "sleep":
        assert days >= {dt.date.fromisoformat(d["date"]) for d in truth if d["night_worn"]}
    elif entity == "activity":
        assert days >= {dt.date.fromisoformat(d["date"]) for d in truth if d["workouts"]}
    else:
        assert len(days & wanted) >= 4


def test_an_answer_that_went_to_the_webhook_is_no_empty_answer(sandbox: RunningSandbox) -> None:
    long = Window(dt.date(2026, 9, 1), dt.date(2026, 10, 20))
    with client(sandbox) as api, pytest.raises(MalformedResponseError, match="went to the webhook"):
        list(terra.fetch(api, PROVIDER.entity("daily"), long))


def test_a_limit_is_the_connections_own(sandbox: RunningSandbox) -> None:
    fault(sandbox, "rate_limit", retry_after=900)
    shared = RateLimiter()
    with client(sandbox, limiter=shared, max_wait=1.0) as api, pytest.raises(RateLimitedError) as refused:
        list(terra.fetch(api, PROVIDER.entity("daily"), WEEK))
    left = refused.value.retry_at - dt.datetime.now(dt.UTC)
    assert dt.timedelta(seconds=880) < left <= dt.timedelta(seconds=900)
    assert shared.reserve() == 0


def test_an_unknown_user_has_to_reconnect_and_a_wrong_key_is_ours(sandbox: RunningSandbox) -> None:
    with client(sandbox, user_id="nobody") as api, pytest.raises(AuthorizationError, match="connect again"):
        list(terra.fetch(api, PROVIDER.entity("daily"), WEEK))
    with client(sandbox, key="canary") as api, pytest.raises(RequestRejectedError) as refused:
        list(terra.fetch(api, PROVIDER.entity("daily"), WEEK))
    assert "API key" in str(refused.value)
    assert "canary" not in str(refused.value)


def test_a_damaged_body_is_kept_and_told(sandbox: RunningSandbox) -> None:
    fault(sandbox, "malformed", path_contains="/daily")
    with client(sandbox) as api:
        pages = terra.fetch(api, PROVIDER.entity("daily"), WEEK)
        assert len(next(pages).content) > 1000
        with pytest.raises(MalformedResponseError, match="not JSON"):
            next(pages)


def test_identify_says_whose_device_it_is(sandbox: RunningSandbox) -> None:
    with client(sandbox) as api:
        account = terra.identify(api)
    assert account.provider_user_id == WATCH
    assert account.profile == {"resource": "GARMIN", "age": 35, "sex": "female"}


# Webhooks


@pytest.fixture
def calls(sandbox: RunningSandbox) -> Iterator[list[WebhookRequest]]:
    made = sandbox.app.state.apis["terra"].webhooks("ada", dt.date(2026, 11, 17), "secret-1")
    yield [request(call.body, dict(call.headers)) for call in made]


def request(body: bytes, headers: dict[str, str], at: dt.datetime | None = None) -> WebhookRequest:
    at = at or dt.datetime(2026, 11, 21, 12, 0, 3, tzinfo=dt.UTC)
    return WebhookRequest("POST", "/", {}, {k.lower(): (v,) for k, v in headers.items()}, body, at)


def signature(body: bytes, secret: str, at: int) -> str:
    return hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def test_the_vendors_calls_are_believed_and_read(calls: list[WebhookRequest]) -> None:
    found = []
    for call in calls:
        assert terra.verify(call, ["old", "secret-1"])
        (event,) = terra.events(call.body)
        assert (event.kind, event.provider_user_id) == ("data", WATCH)
        assert event.window is not None
        assert event.window.start <= dt.date(2026, 11, 17) <= event.window.end
        found.append(event.entity)
        assert parse(str(event.entity), call.body).quarantine.num_rows == 0
    assert set(found) >= {"activity", "daily", "sleep"}


def test_a_call_that_was_touched_or_kept_is_refused(calls: list[WebhookRequest]) -> None:
    call = calls[0]
    header = call.headers["x-terra-signature"][0]
    stamp, good = header.split(",")[0], header.split(",")[1].removeprefix("v1=")

    def believed(body: bytes = call.body, said: str = header, at: dt.datetime | None = None) -> bool:
        return terra.verify(request(body, {"Terra-Signature": said}, at), ["secret-1"])

    assert believed()
    assert believed(said=f"{stamp},v1={'0' * 64},v1={good}")
    assert not believed(body=call.body + b" ")
    assert not terra.verify(call, ["secret-2"])
    assert not terra.verify(call, [])
    for said in ("", stamp, f"v1={good}", f"{stamp},v0={good}", f"{stamp},v1=", f"t=x,v1={good}"):
        assert not believed(said=said), said
    assert not believed(said=f"t={int(stamp[2:]) + 1},v1={good}")
    assert not believed(said=f"{stamp},{stamp},v1={good}")
    assert not believed(said=f"{stamp},v1={'é' * 32}")
    for seconds, fine in ((299, True), (301, False), (-299, True), (-301, False)):
        sent = dt.datetime.fromtimestamp(int(stamp[2:]), dt.UTC)
        assert believed(at=sent + dt.timedelta(seconds=seconds)) is fine


def test_the_documented_message_is_what_is_signed() -> None:
    body = b'{"type":"healthcheck"}'
    at = int(RECEIVED_AT.timestamp())
    said = request(body, {"terra-signature": f"t={at},v1={signature(body, 'k', at)}"}, RECEIVED_AT)
    assert terra.verify(said, ["k"])


def test_events_that_carry_no_data() -> None:
    def event(**said: Any) -> Event:
        (found,) = terra.events(orjson.dumps(said))
        return found

    old, new = {"user_id": "old", "provider": "GARMIN"}, {"user_id": "new", "provider": "GARMIN"}
    again = event(type="user_reauth", old_user=old, new_user=new)
    assert (again.kind, again.provider_user_id, again.record_ids) == ("moved", "old", ("new",))
    for kind in ("healthcheck", "processing", "google_no_datasource", "rate_limit_hit", "never_heard_of"):
        assert event(type=kind, user=old).kind == "other"
    cancelled = event(type="auth", status="error", reason="user_cancelled")
    assert (cancelled.kind, cancelled.provider_user_id) == ("other", None)
    # A notice of the type of data, without any.
    assert event(type="daily", status="success", reference="r", user=old).kind == "other"
    for body in (b"", b"[]", b"{}", b'{"type": 1}'):
        with pytest.raises(ValueError, match=r"type|JSON"):
            terra.events(body)
