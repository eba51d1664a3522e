"""Oura: real payloads against plain JSON reading, damaged pages, and fetching from a real HTTP server."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers import oura
from health_pipeline.providers.base import Parsed, RawDocument, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
)
from health_pipeline.providers.oura import PROVIDER

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "oura_v2"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real Oura payloads at {REAL}")


def parse(entity: str, records: list[Any] | bytes, **envelope: Any) -> Parsed:
    content = records if isinstance(records, bytes) else orjson.dumps({"data": records, **envelope})
    parsed = oura.parse(RawDocument(entity, content, RECEIVED_AT))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def at(path: str, record: Any) -> Any:
    for step in path.split("."):
        record = record.get(step) if record is not None else None
    return record


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).astimezone(dt.UTC)


def offset(text: str) -> float:
    shift = dt.datetime.fromisoformat(text).utcoffset()
    assert shift is not None
    return shift.total_seconds() / 60


NIGHT = {
    "id": "night-1",
    "average_breath": 14.5,
    "average_heart_rate": 52.25,
    "average_hrv": 61,
    "awake_time": 1200,
    "bedtime_end": "2026-10-25T07:00:30.000+01:00",
    "bedtime_start": "2026-10-24T23:00:30.000+02:00",
    "day": "2026-10-25",
    "deep_sleep_duration": 5400,
    "efficiency": 91,
    "heart_rate": {
        "interval": 300.0,
        "items": [None, 55.0, 54],
        "timestamp": "2026-10-24T23:00:30.000+02:00",
    },
    "hrv": {"interval": 300, "items": [40, None, 42.5], "timestamp": "2026-10-24T23:00:30.000+02:00"},
    "latency": 600,
    "light_sleep_duration": 14400,
    "low_battery_alert": False,
    "lowest_heart_rate": 47,
    "period": 0,
    "readiness": {
        "contributors": {"activity_balance": 80, "sleep_regularity": 77},
        "score": 83,
        "temperature_deviation": -0.2,
        "temperature_trend_deviation": None,
    },
    "rem_sleep_duration": 6000,
    "sleep_phase_5_min": "442211333",
    "time_in_bed": 32400,
    "total_sleep_duration": 25800,
    "type": "long_sleep",
}
ACTIVITY = {
    "id": "activity-1",
    "day": "2026-11-20",
    "timestamp": "2026-11-20T04:00:00-07:30",
    "score": None,
    "steps": 8123,
    "active_calories": 410,
    "contributors": {"stay_active": 65},
    "met": {"interval": 60.0, "items": [0.9], "timestamp": "2026-11-20T04:00:00.000-07:30"},
}
WORKOUT = {
    "id": "workout-1",
    "activity": "cycling",
    "calories": 210.5,
    "day": "2026-11-20",
    "distance": None,
    "end_datetime": "2026-11-20T18:30:00+05:45",
    "intensity": "moderate",
    "label": None,
    "source": "an unheard-of source",
    "start_datetime": "2026-11-20T18:00:00+05:45",
}
PULSE = {"timestamp": "2026-11-20T10:05:00Z", "timestamp_unix": 1795169100000, "bpm": 61, "source": "rest"}


# Real payloads -------------------------------------------------------------------------------------------

#: file, entity, records, {column: path in the record}
REAL_FILES = [
    (
        "daily_activity",
        "daily_activity",
        1,
        {
            "steps": "steps",
            "active_calories_kcal": "active_calories",
            "equivalent_walking_distance_m": "equivalent_walking_distance",
            "sedentary_time_seconds": "sedentary_time",
            "meters_to_target": "meters_to_target",
            "class_5_min": "class_5_min",
            "contributors_stay_active": "contributors.stay_active",
        },
    ),
    (
        "daily_readiness",
        "daily_readiness",
        1,
        {
            "score": "score",
            "temperature_deviation_celsius": "temperature_deviation",
            "temperature_trend_deviation_celsius": "temperature_trend_deviation",
            "contributors_recovery_index": "contributors.recovery_index",
        },
    ),
    ("daily_sleep", "daily_sleep", 1, {"score": "score", "contributors_timing": "contributors.timing"}),
    (
        "daily_sp02",
        "daily_spo2",
        1,
        {
            "spo2_percentage_average": "spo2_percentage.average",
            "breathing_disturbance_index": "breathing_disturbance_index",
        },
    ),
    (
        "daily_stress",
        "daily_stress",
        1,
        {
            "stress_high_seconds": "stress_high",
            "recovery_high_seconds": "recovery_high",
            "day_summary": "day_summary",
        },
    ),
    (
        "daily_resilience",
        "daily_resilience",
        1,
        {"level": "level", "contributors_daytime_recovery": "contributors.daytime_recovery"},
    ),
    ("vo2_max", "vo2_max", 1, {"vo2_max_ml_per_kg_min": "vo2_max"}),
    (
        "sleep",
        "sleep",
        24,
        {
            "type": "type",
            "period": "period",
            "time_in_bed_seconds": "time_in_bed",
            "total_sleep_duration_seconds": "total_sleep_duration",
            "rem_sleep_duration_seconds": "rem_sleep_duration",
            "latency_seconds": "latency",
            "average_breath_per_minute": "average_breath",
            "average_heart_rate_bpm": "average_heart_rate",
            "lowest_heart_rate_bpm": "lowest_heart_rate",
            "average_hrv_ms": "average_hrv",
            "sleep_phase_5_min": "sleep_phase_5_min",
            "readiness_score": "readiness.score",
            "readiness_temperature_deviation_celsius": "readiness.temperature_deviation",
            "readiness_contributors_hrv_balance": "readiness.contributors.hrv_balance",
        },
    ),
    ("heart_rate", "heartrate", 551, {"bpm": "bpm", "source": "source"}),
    (
        "workout",
        "workout",
        42,
        {
            "activity": "activity",
            "intensity": "intensity",
            "source": "source",
            "calories_kcal": "calories",
            "distance_m": "distance",
        },
    ),
]


@needs_real
@pytest.mark.parametrize(("file", "entity", "count", "paths"), REAL_FILES, ids=lambda v: str(v)[:20])
def test_real_payload_is_read_as_it_stands(file, entity, count, paths):
    content = (REAL / f"{file}.json").read_bytes()
    records = json.loads(content)["data"]
    parsed = parse(entity, content)
    assert (len(records), parsed.records_in, parsed.records_loaded) == (count, count, count)
    assert parsed.notes == ()
    staged = rows(parsed, entity)
    for row, record in zip(staged, records, strict=True):
        for column, path in paths.items():
            assert row[column] == at(path, record), column
        if entity != "heartrate":
            assert row["id"] == record["id"]
            assert row["day"].isoformat() == record["day"]
        for name in ("timestamp", "bedtime_start", "bedtime_end", "start_datetime", "end_datetime"):
            if name in record:
                assert row[name] == utc(record[name])
        started = record.get("bedtime_start") or record.get("start_datetime") or record.get("timestamp")
        if entity == "heartrate":
            assert row["utc_offset_minutes"] is None
        elif started is not None:
            assert row["utc_offset_minutes"] == offset(started)


@needs_real
def test_real_cardiovascular_age_without_id_is_quarantined_and_the_other_loaded():
    parsed = parse("daily_cardiovascular_age", (REAL / "daily_cardiovascular_age.json").read_bytes())
    assert [row["vascular_age_years"] for row in rows(parsed, "daily_cardiovascular_age")] == [32]
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["field"], refused["location"]) == ("missing_field", "id", "data[0]")
    assert json.loads(refused["original"]) == {"day": "2024-11-11", "vascular_age": 39}
    assert parsed.notes == ("daily_cardiovascular_age: new field timestamp",)


@needs_real
def test_real_sleep_samples_are_all_there_in_time_and_value():
    content = (REAL / "sleep.json").read_bytes()
    expected = set()
    for record in json.loads(content)["data"]:
        for kind in ("hrv", "heart_rate"):
            series = record[kind]
            if series is None:
                continue
            for position, value in enumerate(series["items"]):
                if value is not None:
                    moment = utc(series["timestamp"]) + dt.timedelta(seconds=position * series["interval"])
                    expected.add((record["id"], kind, moment, offset(series["timestamp"]), value))
    staged = rows(parse("sleep", content), "sleep_sample")
    assert len(staged) == len(expected) == 1674
    assert {tuple(row.values()) for row in staged} == expected


# Small payloads ------------------------------------------------------------------------------------------


def test_night_keeps_both_offsets_of_the_night_the_clocks_change():
    (row,) = rows(parse("sleep", [NIGHT]), "sleep")
    assert row["bedtime_start"] == dt.datetime(2026, 10, 24, 21, 0, 30, tzinfo=dt.UTC)
    assert row["bedtime_end"] == dt.datetime(2026, 10, 25, 6, 0, 30, tzinfo=dt.UTC)
    assert (row["utc_offset_minutes"], row["end_utc_offset_minutes"]) == (120, 60)
    assert row["day"] == dt.date(2026, 10, 25)
    assert (row["total_sleep_duration_seconds"], row["average_hrv_ms"]) == (25800, 61.0)
    assert (row["readiness_score"], row["readiness_contributors_sleep_regularity"]) == (83, 77)
    assert row["readiness_temperature_trend_deviation_celsius"] is None
    assert row["low_battery_alert"] is False


def test_samples_skip_gaps_and_keep_their_place():
    second = {**NIGHT, "id": "nap", "hrv": None, "heart_rate": None}
    third = {
        **NIGHT,
        "id": "night-2",
        "heart_rate": {**NIGHT["heart_rate"], "items": [0, 50], "interval": 5.5},
    }
    samples = [
        (row["sleep_id"], row["kind"], row["recorded_at"].strftime("%H:%M:%S"), row["value"])
        for row in rows(parse("sleep", [NIGHT, second, third]), "sleep_sample")
    ]
    assert samples == [
        ("night-1", "hrv", "21:00:30", 40.0),
        ("night-1", "hrv", "21:10:30", 42.5),
        ("night-2", "hrv", "21:00:30", 40.0),
        ("night-2", "hrv", "21:10:30", 42.5),
        ("night-1", "heart_rate", "21:05:30", 55.0),
        ("night-1", "heart_rate", "21:10:30", 54.0),
        ("night-2", "heart_rate", "21:00:30", 0.0),
        ("night-2", "heart_rate", "21:00:35", 50.0),
    ]


def test_deleted_and_unheard_of_sleep_types_are_loaded():
    parsed = parse("sleep", [{**NIGHT, "type": "deleted"}, {**NIGHT, "id": "n2", "type": "micro_sleep"}])
    assert [row["type"] for row in rows(parsed, "sleep")] == ["deleted", "micro_sleep"]


def test_offsets_with_half_and_quarter_hours():
    (activity,) = rows(parse("daily_activity", [ACTIVITY]), "daily_activity")
    assert activity["timestamp"] == dt.datetime(2026, 11, 20, 11, 30, tzinfo=dt.UTC)
    assert activity["utc_offset_minutes"] == -450
    (workout,) = rows(parse("workout", [WORKOUT]), "workout")
    assert (workout["utc_offset_minutes"], workout["end_utc_offset_minutes"]) == (345, 345)
    assert workout["source"] == "an unheard-of source"


def test_absent_values_are_null_and_no_note_is_made_of_known_fields():
    parsed = parse("daily_activity", [ACTIVITY, {k: ACTIVITY[k] for k in ("id", "day", "timestamp")}])
    full, bare = rows(parsed, "daily_activity")
    assert (full["steps"], full["score"], full["contributors_stay_active"]) == (8123, None, 65)
    assert (bare["steps"], bare["contributors_stay_active"]) == (None, None)
    assert parsed.notes == ()
    assert parse("heartrate", [PULSE]).notes == ()


def test_empty_page_gives_empty_tables():
    parsed = parse("sleep", [], next_token=None)
    assert parsed.records_in == 0
    assert {name: table.num_rows for name, table in parsed.tables.items()} == {"sleep": 0, "sleep_sample": 0}


def test_new_fields_are_noted_and_ignored():
    night = copy.deepcopy(NIGHT)
    night["skin"] = {"a": 1}
    night["readiness"]["contributors"]["mood"] = 3
    night["hrv"]["unit"] = "ms"
    parsed = parse("sleep", [NIGHT, night])
    assert parsed.notes == (
        "sleep: new field hrv.unit",
        "sleep: new field readiness.contributors.mood",
        "sleep: new field skin",
    )
    assert parsed.records_loaded == 2


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
        ("daily_activity", ACTIVITY, "steps", "8123", "wrong_type", "steps"),
        ("daily_activity", ACTIVITY, "steps", 8123.5, "wrong_type", "steps"),
        ("daily_activity", ACTIVITY, "steps", True, "wrong_type", "steps"),
        ("daily_activity", ACTIVITY, "steps", 10**12, "wrong_type", "steps"),
        ("daily_activity", ACTIVITY, "steps", {"value": 1}, "wrong_type", "steps"),
        ("daily_activity", ACTIVITY, "contributors", [65], "wrong_type", "contributors"),
        (
            "daily_activity",
            ACTIVITY,
            "contributors.stay_active",
            "65",
            "wrong_type",
            "contributors.stay_active",
        ),
        ("daily_activity", ACTIVITY, "id", None, "missing_field", "id"),
        ("daily_activity", ACTIVITY, "id", 7, "wrong_type", "id"),
        ("daily_activity", ACTIVITY, "id", "a\0b", "wrong_type", "id"),
        ("daily_activity", ACTIVITY, "day", "20.11.2026", "wrong_type", "day"),
        ("daily_activity", ACTIVITY, "day", None, "missing_field", "day"),
        ("daily_activity", ACTIVITY, "timestamp", "2026-11-20T04:00:00", "wrong_type", "timestamp"),
        ("daily_activity", ACTIVITY, "timestamp", "2026-02-30T04:00:00Z", "wrong_type", "timestamp"),
        ("daily_activity", ACTIVITY, "timestamp", "0000-06-01T04:00:00Z", "wrong_type", "timestamp"),
        ("daily_activity", ACTIVITY, "timestamp", 1795169100, "wrong_type", "timestamp"),
        ("heartrate", PULSE, "bpm", None, "missing_field", "bpm"),
        ("heartrate", PULSE, "bpm", "61", "wrong_type", "bpm"),
        ("heartrate", PULSE, "timestamp", None, "missing_field", "timestamp"),
        ("heartrate", PULSE, "source", 3, "wrong_type", "source"),
        ("sleep", NIGHT, "low_battery_alert", "no", "wrong_type", "low_battery_alert"),
        ("sleep", NIGHT, "average_hrv", True, "wrong_type", "average_hrv"),
        ("sleep", NIGHT, "hrv.items", [40, "41"], "wrong_type", "hrv.items"),
        ("sleep", NIGHT, "hrv.items", [True], "wrong_type", "hrv.items"),
        ("sleep", NIGHT, "hrv.items", None, "missing_field", "hrv.items"),
        ("sleep", NIGHT, "hrv.timestamp", None, "missing_field", "hrv.timestamp"),
        ("sleep", NIGHT, "hrv.interval", 0, "wrong_type", "hrv.interval"),
        ("sleep", NIGHT, "heart_rate", "55", "wrong_type", "heart_rate"),
        ("workout", WORKOUT, "start_datetime", None, "missing_field", "start_datetime"),
        ("workout", WORKOUT, "end_datetime", "yesterday", "wrong_type", "end_datetime"),
    ],
)
def test_damaged_record_is_quarantined_alone(entity, record, path, value, reason, field):
    damaged = replaced(record, path, value)
    parsed = parse(entity, [record, damaged, record])
    assert parsed.quarantine.to_pylist() == [
        {
            "entity": entity,
            "reason": reason,
            "field": field,
            "location": "data[1]",
            "original": orjson.dumps(damaged).decode(),
        }
    ]
    assert parsed.tables[entity] == parse(entity, [record, record]).tables[entity]
    assert parsed.records_loaded == 2


@pytest.mark.parametrize("record", [None, 7, "x", [1], []])
def test_record_that_is_no_object_is_quarantined_alone(record):
    parsed = parse("heartrate", [PULSE, record])
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["field"], refused["location"]) == ("wrong_type", None, "data[1]")
    assert parsed.records_loaded == 1


def test_whole_page_of_a_changed_type_is_quarantined():
    parsed = parse("heartrate", [{**PULSE, "bpm": "61"}] * 100)
    assert (parsed.records_in, parsed.records_loaded, parsed.quarantine.num_rows) == (100, 0, 100)
    assert parsed.tables["heartrate"].num_rows == 0


@pytest.mark.parametrize("value", [2**62, 1.5, -0.0, 1e300])
def test_large_and_whole_numbers_of_both_kinds_side_by_side(value):
    parsed = parse("daily_activity", [replaced(ACTIVITY, "steps", v) for v in (value, 7.0, 9)])
    good = [row["steps"] for row in rows(parsed, "daily_activity")]
    assert good == ([0, 7, 9] if value == 0 else [7, 9])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>502</html>",
        b'{"data": [{"id": "cut',
        b'{"detail": "x"}',
        b'{"data": {}}',
        b"[]",
        b"\xff\0",
        b"null",
    ],
)
def test_malformed_body_is_one_quarantine_row(content):
    parsed = parse("sleep", content)
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["entity"], refused["reason"], refused["location"]) == ("sleep", "malformed_body", "$")
    assert (parsed.records_in, parsed.records_loaded) == (1, 0)
    assert "\0" not in refused["original"]


def test_long_originals_are_cut():
    parsed = parse("daily_activity", [{**ACTIVITY, "id": None, "class_5_min": "1" * 9000}])
    original = parsed.quarantine["original"][0].as_py()
    assert len(original) == 4097
    assert original.endswith("…")


def test_record_nested_too_deeply_is_quarantined_without_its_text():
    content = b'{"data": [{"id": ' + b"[" * 600 + b"]" * 600 + b"}]}"
    parsed = parse("daily_sleep", content)
    assert parsed.quarantine["original"].to_pylist() == ["(nested too deeply to be shown)"]


def test_unknown_entity_is_refused():
    with pytest.raises(KeyError):
        parse("sleep_sample", [])


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["2026-11-20", "2026-11-20T04:00:00+01:00", "0000-01-01T00:00:00Z", "12", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SHAPES = {"sleep": NIGHT, "daily_activity": ACTIVITY, "workout": WORKOUT, "heartrate": PULSE}


def leaves(record: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in record.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")


@st.composite
def pages(draw: st.DrawFn) -> tuple[str, list[Any], list[bool]]:
    entity = draw(st.sampled_from(sorted(SHAPES)))
    records: list[Any] = []
    whole: list[bool] = []
    for number in range(draw(st.integers(0, 6))):
        record = copy.deepcopy(SHAPES[entity])
        if "id" in record:
            record["id"] = f"id-{number}"
        damage = draw(st.sampled_from(["none", "none", "replace", "remove", "junk"]))
        if damage == "junk":
            record = draw(JUNK)
        elif damage != "none":
            path = draw(st.sampled_from(list(leaves(record))))
            if damage == "replace":
                record = replaced(record, path, draw(JUNK))
            else:
                *parents, leaf = path.split(".")
                node = record
                for step in parents:
                    node = node[step]
                del node[leaf]
        records.append(record)
        whole.append(damage == "none")
    return entity, records, whole


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pages())
def test_whatever_the_damage_records_add_up_and_good_ones_are_unharmed(page):
    entity, records, whole = page
    parsed = parse(entity, records)
    assert parsed.records_in == len(records)
    assert parsed.records_loaded == parsed.tables[entity].num_rows
    refused = {int(place[5:-1]) for place in parsed.quarantine["location"].to_pylist()}
    kept = [index for index in range(len(records)) if index not in refused]
    assert all(index in kept for index, good in enumerate(whole) if good)
    # Each kept record gives the row it gives alone, and each refused one is refused alone.
    alone = [parse(entity, [records[index]]) for index in range(len(records))]
    assert [one.records_loaded for one in alone] == [int(index in kept) for index in range(len(records))]
    if kept:
        assert parsed.tables[entity] == pa.concat_tables(alone[index].tables[entity] for index in kept)
    if entity == "sleep":
        assert parsed.tables["sleep_sample"].num_rows == sum(
            one.tables["sleep_sample"].num_rows for one in alone
        )


# Fetching ------------------------------------------------------------------------------------------------

Answer = Callable[[str, dict[str, str], str], tuple[int, bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], ApiClient]]:
    """Starts a server that answers with a function of (path, query, Authorization); gives its client."""
    servers: list[ThreadingHTTPServer] = []
    clients: list[ApiClient] = []

    def start(answer: Answer) -> ApiClient:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                status, body = answer(url.path, query, self.headers["Authorization"])
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        client = ApiClient("oura", f"http://127.0.0.1:{server.server_port}", lambda _: "token")
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(client: ApiClient, entity: str, start: str, end: str) -> list[Any]:
    window = Window(dt.date.fromisoformat(start), dt.date.fromisoformat(end))
    return list(oura.fetch(client, PROVIDER.entity(entity), window))


def test_documents_are_asked_for_from_a_day_early_to_the_end_of_the_last_day_page_by_page(serve):
    asked = []

    def answer(path: str, query: dict[str, str], _: str) -> tuple[int, bytes]:
        asked.append((path, query))
        page = {"": ("a", "t1"), "t1": ("b", "t2"), "t2": ("c", None)}[query.get("next_token", "")]
        return 200, f' {{"data": ["{page[0]}"], "next_token": {json.dumps(page[1])}}}'.encode()

    pages = fetch(serve(answer), "vo2_max", "2026-11-14", "2026-11-20")
    dates = {"start_date": "2026-11-13", "end_date": "2026-11-20T23:59:59"}
    assert asked == [
        ("/v2/usercollection/vO2_max", dates),
        ("/v2/usercollection/vO2_max", {**dates, "next_token": "t1"}),
        ("/v2/usercollection/vO2_max", {**dates, "next_token": "t2"}),
    ]
    assert [page.content for page in pages] == [
        b' {"data": ["a"], "next_token": "t1"}',
        b' {"data": ["b"], "next_token": "t2"}',
        b' {"data": ["c"], "next_token": null}',
    ]
    assert {(page.entity, page.window.start.isoformat()) for page in pages} == {("vo2_max", "2026-11-14")}


def test_heart_rate_is_asked_for_in_utc_with_room_for_every_zone_and_at_most_30_days(serve):
    asked: list[dict[str, str]] = []

    def answer(path: str, query: dict[str, str], _: str) -> tuple[int, bytes]:
        asked.append(query)
        return 200, b'{"data": [], "next_token": null}'

    entity = PROVIDER.entity("heartrate")
    (window,) = Window(dt.date(2026, 1, 1), dt.date(2026, 1, 28)).split(entity.max_window_days)
    list(oura.fetch(serve(answer), entity, window))
    start, end = (dt.datetime.fromisoformat(asked[0][name]) for name in ("start_datetime", "end_datetime"))
    assert start <= dt.datetime.fromisoformat("2026-01-01T00:00:00+14:00")
    assert end >= dt.datetime.fromisoformat("2026-01-28T23:59:59-12:00")
    assert end - start <= dt.timedelta(days=30)


@pytest.mark.parametrize("body", [b"<html>", b'{"detail": "no"}', b'{"data": [], "next_token": 7}'])
def test_page_that_cannot_be_paged_through_is_kept_and_reported(serve, body):
    client = serve(lambda path, query, token: (200, body))
    window = Window(dt.date(2026, 11, 20), dt.date(2026, 11, 20))
    pages = oura.fetch(client, PROVIDER.entity("sleep"), window)
    assert next(pages).content == body
    with pytest.raises(MalformedResponseError, match="the rest of the pages is unknown"):
        next(pages)


def test_pages_that_go_round_in_a_circle_end(serve):
    client = serve(lambda path, query, token: (200, b'{"data": [], "next_token": "t1"}'))
    with pytest.raises(MalformedResponseError, match="circle"):
        fetch(client, "sleep", "2026-11-20", "2026-11-20")


def test_401_for_a_missing_scope_is_not_taken_for_a_dead_token(serve):
    def answer(path: str, query: dict[str, str], _: str) -> tuple[int, bytes]:
        return (200, b'{"id": "u"}') if path.endswith("personal_info") else (401, b"{}")

    with pytest.raises(PermissionMissingError, match="'heart_health' was not granted") as caught:
        fetch(serve(answer), "vo2_max", "2026-11-20", "2026-11-20")
    assert caught.value.path == "/v2/usercollection/vO2_max"


def test_401_everywhere_is_a_dead_token(serve):
    with pytest.raises(AuthorizationError):
        fetch(serve(lambda path, query, token: (401, b"{}")), "vo2_max", "2026-11-20", "2026-11-20")


def test_sample_tables_cannot_be_fetched(serve):
    with pytest.raises(ValueError, match="filled from other objects"):
        fetch(serve(lambda path, query, token: (200, b"{}")), "sleep_sample", "2026-11-20", "2026-11-20")


def test_identify_keeps_the_id_and_the_body_but_no_address(serve):
    body = {"id": "u-1", "age": 34, "weight": 71.5, "height": None, "biological_sex": "female"}
    client = serve(lambda path, query, token: (200, json.dumps({**body, "email": "a@b.example"}).encode()))
    account = oura.identify(client)
    assert account.provider_user_id == "u-1"
    assert account.profile == {"age": 34, "sex": "female", "weight_kg": 71.5}


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"id": ""}'])
def test_identify_without_an_id_says_so(serve, body):
    with pytest.raises(MalformedResponseError, match="no user id"):
        oura.identify(serve(lambda path, query, token: (200, body)))


# The declaration -----------------------------------------------------------------------------------------


def test_declaration():
    entities = {entity.name: entity for entity in PROVIDER.entities}
    assert set(entities) == {
        *("daily_activity", "daily_readiness", "daily_sleep", "daily_spo2", "daily_stress"),
        *("daily_resilience", "daily_cardiovascular_age", "vo2_max", "sleep", "heartrate", "workout"),
        "sleep_sample",
    }
    assert PROVIDER.oauth is not None
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        if entity.endpoint is not None:
            assert entity.scope in PROVIDER.oauth.scopes
            assert entity.lookback_days == (2 if entity.name == "heartrate" else 7)
