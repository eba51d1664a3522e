"""Withings: recorded payloads, damaged ones, statuses in disguise, and fetching from the sandbox over HTTP."""

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
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers import withings
from health_pipeline.providers.base import Page, Parsed, RawDocument, WebhookRequest, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
    RequestRejectedError,
)
from health_pipeline.providers.withings import PROVIDER
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def parse(entity: str, body: Any, status: int = 0, **context: str) -> Parsed:
    content = body if isinstance(body, bytes) else orjson.dumps({"status": status, "body": body})
    parsed = withings.parse(RawDocument(entity, content, RECEIVED_AT, context=context))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def refusals(parsed: Parsed) -> list[tuple[Any, ...]]:
    return [(row["reason"], row["field"], row["location"]) for row in parsed.quarantine.to_pylist()]


def utc(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(second, dt.UTC)


GROUP = {
    "grpid": 4815757309,
    "attrib": 0,
    "date": 1792888200,  # 2026-10-25T00:30Z, half past two in Paris: the clocks go back half an hour later
    "created": 1792888260,
    "modified": 1792888260,
    "category": 1,
    "deviceid": "scale-1",
    "measures": [
        {"value": 71250, "type": 1, "unit": -3, "algo": 0, "fm": 3},
        {"value": 98, "type": 54, "unit": 0},
        {"value": 61, "type": 173, "unit": -1, "position": 12},
    ],
    "model": "Body Scan",
    "modelid": 10,
}
DAY = {
    "date": "2026-10-25",
    "timezone": "Europe/Paris",
    "deviceid": None,
    "brand": 1,
    "is_tracker": True,
    "modified": 1792888260,
    "steps": 8123,
    "distance": 6020.5,
    "elevation": 11,
    "active": 3600,
    "calories": 320.25,
    "totalcalories": 2300,
    "hr_average": 71,
}
SLEEP = {
    "id": 2081804182,
    "timezone": "Europe/Paris",
    "model": 32,
    "startdate": 1792879200,  # 2026-10-24T22:00Z
    "enddate": 1792908000,  # 2026-10-25T06:00Z
    "date": "2026-10-25",
    "modified": 1792908600,
    "completed": True,
    "data": {"total_sleep_time": 25200, "sleep_efficiency": 0.875, "hr_min": 48, "rr_average": 14},
}
PART = {"startdate": 1792879200, "enddate": 1792879500, "state": 0, "model": "Aura Sensor V2"}
WORKOUT = {
    "id": 77,
    "category": 2,
    "timezone": "Asia/Kathmandu",
    "startdate": 1792888200,
    "enddate": 1792891800,
    "date": "2026-10-25",
    "data": {"calories": 400, "hr_average": 141},
}
SAMPLE = {"deviceid": "watch-1", "model": "ScanWatch", "heart_rate": 58, "steps": 12}


def page_of(entity: str, records: list[Any]) -> dict[str, Any]:
    if entity == "measure":
        return {"timezone": "Europe/Paris", "measuregrps": records}
    if entity == "intraday_activity":
        return {"series": {str(1792888200 + 60 * place): record for place, record in enumerate(records)}}
    return {"activities" if entity == "activity" else "series": records}


# Recorded payloads ---------------------------------------------------------------------------------------

REAL = [
    ("withings/activity.json", "activity", {}, {"activity": 2}),
    ("withings/measurement.json", "measure", {}, {"measure": 2}),
    ("withings/measurement_list_2.json", "measure", {}, {"measure": 433}),
    ("withings/sleep_summary_no_datafields.json", "sleep", {}, {"sleep": 300}),
    (
        "withings/sleep_no_datafields.json",
        "sleep",
        {"sleep_id": "1"},
        {"sleep_hypnogram": 1, "sleep_sample": 0},
    ),
    ("openmhealth_shimmer/withings/withings-activity-measures.json", "activity", {}, {"activity": 4}),
    ("openmhealth_shimmer/withings/withings-body-measures.json", "measure", {}, {"measure": 12}),
    (
        "openmhealth_shimmer/withings/withings-sleep-measures.json",
        "sleep",
        {"sleep_id": "1"},
        {"sleep_hypnogram": 1, "sleep_sample": 0},
    ),
]


@pytest.mark.parametrize(("file", "entity", "context", "counts"), REAL, ids=[row[0] for row in REAL])
def test_recorded_payload_is_loaded_whole(
    file: str, entity: str, context: dict[str, str], counts: dict[str, int]
) -> None:
    path = SHARED / "data" / file
    if not path.exists():
        pytest.skip(f"no recorded payload at {path}")
    content = path.read_bytes()
    if content.startswith(b"["):
        content = orjson.dumps({"status": 0, "body": {"measuregrps": json.loads(content)}})
    parsed = parse(entity, content, **context)
    assert {name: table.num_rows for name, table in parsed.tables.items()} == counts
    assert parsed.quarantine.num_rows == 0
    assert parsed.notes == ()


def test_recorded_weights_and_nights_have_the_values_they_were_sent_with() -> None:
    folder = SHARED / "data" / "withings"
    if not folder.exists():
        pytest.skip(f"no recorded payloads at {folder}")
    groups = json.loads((folder / "measurement_list_2.json").read_bytes())
    sent = [
        (group["grpid"], m["type"], m.get("position", -1), m["value"], m["unit"])
        for group in groups
        for m in group["measures"]
    ]
    staged = rows(parse("measure", {"measuregrps": groups}), "measure")
    columns = ("group_id", "measure_type", "position", "value", "unit")
    assert [tuple(row[column] for column in columns) for row in staged] == sent
    nights = json.loads((folder / "sleep_summary_no_datafields.json").read_bytes())["body"]
    for row, night in zip(rows(parse("sleep", nights), "sleep"), nights["series"], strict=True):
        assert (row["id"], row["date"].isoformat()) == (night["id"], night["date"])
        assert (row["started_at"], row["ended_at"]) == (utc(night["startdate"]), utc(night["enddate"]))
        assert row["remsleepduration_seconds"] == night["data"]["remsleepduration"]
        assert row["utc_offset_minutes"] in (60, 120)


# Small payloads ------------------------------------------------------------------------------------------


def test_measures_of_a_group_are_rows_with_the_zone_of_the_body() -> None:
    parsed = parse("measure", page_of("measure", [GROUP]))
    weight, oxygen, segment = rows(parsed, "measure")
    assert (weight["value"], weight["unit"], weight["position"]) == (71250, -3, -1)
    assert (oxygen["measure_type"], oxygen["value"], oxygen["unit"]) == (54, 98, 0)
    assert (segment["measure_type"], segment["position"]) == (173, 12)
    assert weight["measured_at"] == dt.datetime(2026, 10, 25, 0, 30, tzinfo=dt.UTC)
    assert {row["utc_offset_minutes"] for row in (weight, oxygen, segment)} == {120}
    assert parsed.notes == ()


@pytest.mark.parametrize("zone", [None, "", "Mars/Olympus", "../etc/passwd", "Europe"])
def test_a_zone_that_is_none_leaves_the_offset_open(zone: str | None) -> None:
    body = {**page_of("measure", [GROUP]), "timezone": zone}
    assert {row["utc_offset_minutes"] for row in rows(parse("measure", body), "measure")} == {None}
    (day,) = rows(parse("activity", page_of("activity", [{**DAY, "timezone": zone}])), "activity")
    assert (day["started_at"], day["ended_at"], day["utc_offset_minutes"]) == (None, None, None)
    assert day["steps"] == 8123


def test_a_day_runs_from_midnight_to_midnight_of_its_zone_also_when_the_clocks_change() -> None:
    (day,) = rows(parse("activity", page_of("activity", [DAY])), "activity")
    assert day["started_at"] == dt.datetime(2026, 10, 24, 22, tzinfo=dt.UTC)
    assert day["ended_at"] == dt.datetime(2026, 10, 25, 23, tzinfo=dt.UTC)
    assert (day["utc_offset_minutes"], day["device_id"]) == (120, "")
    assert (day["active_calories_kcal"], day["floors"]) == (320.25, 11)


def test_a_night_has_both_offsets() -> None:
    (night,) = rows(parse("sleep", page_of("sleep", [SLEEP])), "sleep")
    assert (night["utc_offset_minutes"], night["end_utc_offset_minutes"]) == (120, 60)
    assert (night["sleep_efficiency_ratio"], night["total_sleep_time_seconds"]) == (0.875, 25200)
    (workout,) = rows(parse("workout", page_of("workout", [WORKOUT])), "workout")
    assert (workout["utc_offset_minutes"], workout["hr_average_bpm"]) == (345, 141)


def test_stages_are_joined_sorted_and_never_overlap() -> None:
    start = PART["startdate"]

    def part(begin: int, end: int, state: int, **more: Any) -> dict[str, Any]:
        return {**PART, "startdate": start + begin, "enddate": start + end, "state": state, **more}

    parts = [
        part(600, 900, 2, hr={str(start + 660): 51}, rmssd={str(start + 660): 40, str(start + 720): 60.5}),
        part(0, 300, 0),
        part(300, 600, 1, hr=[], rmssd={str(start + 360): 0}),
        part(400, 650, 3),  # another device's word on the same minutes
        part(900, 1200, 2),
        part(1500, 1560, 15),
    ]
    parsed = parse("sleep", {"series": parts, "model": 32}, sleep_id="9")
    (night,) = rows(parsed, "sleep_hypnogram")
    assert (night["sleep_id"], night["started_at"], night["ended_at"]) == (9, utc(start), utc(start + 1560))
    assert json.loads(night["stages"]) == [
        {"stage": "awake", "start": 0, "seconds": 300},
        {"stage": "light", "start": 300, "seconds": 300},
        {"stage": "rem", "start": 600, "seconds": 50},
        {"stage": "deep", "start": 650, "seconds": 550},
        {"stage": "awake", "start": 1500, "seconds": 60},
    ]
    assert night["rmssd_average_ms"] == pytest.approx(50.25)
    samples = {(row["kind"], row["recorded_at"], row["value"]) for row in rows(parsed, "sleep_sample")}
    assert samples == {
        ("heart_rate", utc(start + 660), 51.0),
        ("rmssd", utc(start + 660), 40.0),
        ("rmssd", utc(start + 720), 60.5),
        ("rmssd", utc(start + 360), 0.0),
    }


@pytest.mark.parametrize(
    ("entity", "body", "table"),
    [
        ("intraday_activity", {"series": []}, "intraday_activity"),
        ("intraday_activity", {"series": {}}, "intraday_activity"),
        ("measure", {"measuregrps": []}, "measure"),
        ("sleep", {"series": []}, "sleep"),
    ],
)
def test_nothing_is_no_error(entity: str, body: dict[str, Any], table: str) -> None:
    parsed = parse(entity, body)
    assert (parsed.records_in, parsed.tables[table].num_rows) == (0, 0)


def test_an_empty_group_is_counted_and_an_unreadable_one_refused() -> None:
    groups = [{**GROUP, "measures": []}, {**GROUP, "measures": None}, 7, {**GROUP, "measures": [None]}, GROUP]
    parsed = parse("measure", page_of("measure", groups))
    assert parsed.skipped == {"empty_group": 1}
    assert refusals(parsed) == [
        ("missing_field", "measures", "body.measuregrps[1]"),
        ("wrong_type", None, "body.measuregrps[2]"),
        ("missing_field", "measure.type", "body.measuregrps[3].measures[0]"),
    ]
    assert parsed.records_loaded == 3


@pytest.mark.parametrize(
    ("entity", "record", "change", "refusal"),
    [
        ("activity", DAY, {"date": "25.10.2026"}, ("wrong_type", "date", "body.activities[1]")),
        ("activity", DAY, {"steps": "8123"}, ("wrong_type", "steps", "body.activities[1]")),
        ("activity", DAY, {"date": None}, ("missing_field", "date", "body.activities[1]")),
        ("sleep", SLEEP, {"startdate": 10**15}, ("wrong_type", "startdate", "body.series[1]")),
        ("sleep", SLEEP, {"id": None}, ("missing_field", "id", "body.series[1]")),
        ("sleep", SLEEP, {"data": [1]}, ("wrong_type", "data", "body.series[1]")),
        ("workout", WORKOUT, {"category": "run"}, ("wrong_type", "category", "body.series[1]")),
        ("workout", WORKOUT, {"enddate": True}, ("wrong_type", "enddate", "body.series[1]")),
    ],
)
def test_damaged_record_is_quarantined_alone(
    entity: str, record: dict[str, Any], change: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    damaged = {**record, **change}
    parsed = parse(entity, page_of(entity, [record, damaged, record]))
    assert refusals(parsed) == [refusal]
    assert json.loads(parsed.quarantine["original"][0].as_py()) == damaged
    assert parsed.tables[entity] == parse(entity, page_of(entity, [record, record])).tables[entity]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"unit": -400}, "measure.unit"),
        ({"unit": None}, "measure.unit"),
        ({"value": 71.25}, "measure.value"),
        ({"value": "71250"}, "measure.value"),
        ({"type": True}, "measure.type"),
    ],
)
def test_damaged_measure_leaves_the_others_of_its_group(change: dict[str, Any], field: str) -> None:
    damaged = copy.deepcopy(GROUP)
    damaged["measures"][1].update(change)
    parsed = parse("measure", page_of("measure", [damaged]))
    ((reason, named, place),) = refusals(parsed)
    assert (reason in ("wrong_type", "missing_field"), named) == (True, field)
    assert place == "body.measuregrps[0].measures[1]"
    assert [row["measure_type"] for row in rows(parsed, "measure")] == [1, 173]


@pytest.mark.parametrize(
    "part",
    [
        {**PART, "state": 9},
        {**PART, "hr": {"soon": 50}},
        {**PART, "hr": {"1792879300": "50"}},
        {**PART, "rmssd": {"1792879300": True}},
        {**PART, "hr": 50},
    ],
)
def test_damaged_part_of_a_sleep_is_quarantined_alone(part: dict[str, Any]) -> None:
    parsed = parse("sleep", {"series": [PART, part]}, sleep_id="9")
    assert [place for _, _, place in refusals(parsed)] == ["body.series[1]"]
    assert parsed.records_loaded == 1


def test_an_intraday_key_that_is_no_instant_is_refused() -> None:
    parsed = parse("intraday_activity", {"series": {"1792888200": SAMPLE, "noon": SAMPLE}})
    assert refusals(parsed) == [("wrong_type", "timestamp", "body.series.noon")]
    (row,) = rows(parsed, "intraday_activity")
    assert (row["recorded_at"], row["heart_rate_bpm"], row["steps"]) == (utc(1792888200), 58, 12)


def test_new_fields_are_noted() -> None:
    group = {**GROUP, "mood": 1, "measures": [{**GROUP["measures"][0], "confidence": 2}]}  # type: ignore[index]
    notes = ("measure: new field measure.confidence", "measure: new field mood")
    assert parse("measure", page_of("measure", [group])).notes == notes
    night = {**SLEEP, "data": {**SLEEP["data"], "dreams": 3}}  # type: ignore[dict-item]
    assert parse("sleep", page_of("sleep", [night])).notes == ("sleep: new field data.dreams",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"status":0}',
        b'{"status":0,"body":[]}',
        b'{"status":601,"body":{}}',
        b"\xff\0",
    ],
)
@pytest.mark.parametrize("entity", ["measure", "activity", "intraday_activity", "workout", "sleep"])
def test_malformed_body_is_one_quarantine_row(entity: str, content: bytes) -> None:
    parsed = parse(entity, content)
    assert refusals(parsed) == [("malformed_body", None, "$")]
    assert (parsed.records_in, parsed.records_loaded) == (1, 0)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["2026-11-20", 1792888200, "Europe/Paris", []]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SHAPES = {
    "measure": GROUP,
    "activity": DAY,
    "sleep": SLEEP,
    "workout": WORKOUT,
    "intraday_activity": SAMPLE,
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_the_damage_good_records_are_unharmed(data: st.DataObject) -> None:
    entity = data.draw(st.sampled_from(sorted(SHAPES)))
    records: list[Any] = []
    whole: list[int] = []
    for number in range(data.draw(st.integers(1, 4))):
        record: Any = copy.deepcopy(SHAPES[entity])
        match data.draw(st.sampled_from(["none", "field", "junk"])):
            case "field":
                record[data.draw(st.sampled_from(sorted(record)))] = data.draw(JUNK)
            case "junk":
                record = data.draw(JUNK)
            case _:
                whole.append(number)
        records.append(record)
    parsed = parse(entity, page_of(entity, records))
    bad = {location.split(".measures")[0] for location in parsed.quarantine["location"].to_pylist()}
    for number in whole:
        places = {f"body.{name}[{number}]" for name in ("measuregrps", "activities", "series")}
        assert not bad & {*places, f"body.series.{1792888200 + 60 * number}"}


# Statuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "unauthorized") for status in (100, 102, 200, 401)),
        *((status, "forbidden") for status in (214, 277, 2553, 2555)),
        *((status, "rejected") for status in (201, 293, 503, 524, 2554)),
        (522, "unavailable"),
        (601, "rate_limited"),
    ],
)
def test_status_in_the_body_is_what_the_answer_means(status: int, kind: str) -> None:
    for content in (f'{{"status":{status},"body":{{}}}}', f'{{"body":{{}},"error":"x","status": {status}}}'):
        verdict = withings.interpret(httpx.Response(200, content=content.encode()), 0.0)
        assert verdict is not None
        assert (verdict.kind, verdict.for_all) == (kind, True)
        assert verdict.wait_seconds == (60.0 if kind == "rate_limited" else None)


@pytest.mark.parametrize("content", [b'{"status":0,"body":{}}', b"<html>", b'{"body":{}}', b""])
def test_answers_without_a_bad_status_are_read_as_usual(content: bytes) -> None:
    assert withings.interpret(httpx.Response(200, content=content), 0.0) is None
    assert withings.interpret(httpx.Response(502, content=b'{"status":601}'), 0.0) is None


def test_token_answers() -> None:
    body = {
        "userid": 363,
        "access_token": "a",
        "refresh_token": "r",
        "expires_in": 10800,
        "scope": "user.info",
    }
    answer = withings.read_token_answer({"status": 0, "body": body})
    assert (answer["access_token"], answer["userid"], answer["expires_in"]) == ("a", 363, 10800)
    refused = withings.read_token_answer({"status": 503, "error": "Invalid params: invalid refresh_token"})
    assert refused == {"error": "invalid_grant"}
    ours = withings.read_token_answer({"status": 503, "error": "Invalid params: invalid client_secret"})
    assert ours == {"error": "invalid_client"}
    for status in (601, 2555, None):
        with pytest.raises(ValueError, match=f"status {status}"):
            withings.read_token_answer({"status": status, "body": {}})


# Fetching ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with run_in_thread(now=lambda: NOW, document_page_size=5) as running:
        yield running


Connect = Callable[..., ApiClient]


@pytest.fixture
def client(sandbox: RunningSandbox) -> Iterator[Connect]:
    opened: list[ApiClient] = []

    def connect(token: str | None = None, **options: Any) -> ApiClient:
        token = token or sandbox.app.state.apis["withings"].oauth.access_token("ada")
        url = f"{sandbox.url}/withings"
        options = {"interpret": PROVIDER.interpret, "max_wait": 0.0, **options}
        opened.append(ApiClient("withings", url, lambda _: str(token), **options))
        return opened[-1]

    yield connect
    sandbox.app.state.faults.clear()
    for each in opened:
        each.close()


def fetch(client: ApiClient, entity: str, start: str, end: str) -> list[Page]:
    window = Window(dt.date.fromisoformat(start), dt.date.fromisoformat(end))
    return list(withings.fetch(client, PROVIDER.entity(entity), window))


def fetched(client: ApiClient, entity: str, start: str, end: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for page in fetch(client, entity, start, end):
        parsed = parse(page.entity, page.content, **page.context)
        assert parsed.quarantine.num_rows == 0
        assert parsed.notes == ()
        for name in parsed.tables:
            found.setdefault(name, []).extend(rows(parsed, name))
    return found


def test_days_come_page_by_page_and_both_ends_are_there(client: Connect) -> None:
    pages = fetch(client(), "activity", "2026-10-01", "2026-10-12")
    assert [len(json.loads(page.content)["body"]["activities"]) for page in pages] == [5, 5, 2]
    days = [
        row["date"].isoformat()
        for row in fetched(client(), "activity", "2026-10-01", "2026-10-12")["activity"]
    ]
    assert days == [f"2026-10-{day:02d}" for day in range(1, 13)]


def test_all_measures_of_a_day_come_and_their_groups_are_whole(client: Connect) -> None:
    found = fetched(client(), "measure", "2026-10-05", "2026-10-09")["measure"]
    days = {row["measured_at"].date().isoformat() for row in found}
    assert days >= {"2026-10-05", "2026-10-09"}
    kinds = {row["measure_type"] for row in found}
    assert kinds >= {1, 5, 6, 8, 9, 10, 11, 54, 76, 77, 88, 91, 155}


def test_samples_of_a_local_day_anywhere_come_a_utc_day_a_request(client: Connect) -> None:
    pages = fetch(client(), "intraday_activity", "2026-10-05", "2026-10-06")
    assert len(pages) == 4
    found = fetched(client(), "intraday_activity", "2026-10-05", "2026-10-06")["intraday_activity"]
    assert min(row["recorded_at"] for row in found) < dt.datetime(2026, 10, 4, 10, tzinfo=dt.UTC)
    assert max(row["recorded_at"] for row in found) > dt.datetime(2026, 10, 7, 12, tzinfo=dt.UTC)
    times = [row["recorded_at"] for row in found]
    assert len(set(times)) == len(times) > 1000


def test_each_night_comes_with_its_stages_and_samples(client: Connect) -> None:
    found = fetched(client(), "sleep", "2026-10-01", "2026-10-12")
    nights = {row["id"]: row for row in found["sleep"]}
    stages = {row["sleep_id"]: row for row in found["sleep_hypnogram"]}
    assert nights.keys() == stages.keys()
    assert len(nights) > 5
    for sleep_id, night in nights.items():
        assert stages[sleep_id]["started_at"] == night["started_at"]
        parts = json.loads(stages[sleep_id]["stages"])
        for name in ("deep", "light", "rem"):
            seconds = sum(part["seconds"] for part in parts if part["stage"] == name)
            assert seconds == night[f"{name}sleepduration_seconds"]
        samples = [row for row in found["sleep_sample"] if row["sleep_id"] == sleep_id]
        assert {row["kind"] for row in samples} == {"heart_rate", "rmssd"}
        assert all(night["started_at"] <= row["recorded_at"] < night["ended_at"] for row in samples)


def test_used_up_budget_is_a_rate_limit(sandbox: RunningSandbox, client: Connect) -> None:
    fault = {"provider": "withings", "kind": "rate_limit", "count": None}
    httpx.post(f"{sandbox.url}/__faults", json=fault).raise_for_status()
    with pytest.raises(RateLimitedError) as caught:
        fetch(client(), "activity", "2026-10-01", "2026-10-01")
    assert caught.value.retry_at > dt.datetime.now(dt.UTC) + dt.timedelta(seconds=50)


def test_dead_token_and_missing_scope_are_told_apart(sandbox: RunningSandbox, client: Connect) -> None:
    with pytest.raises(AuthorizationError):
        fetch(client("nobody's"), "activity", "2026-10-01", "2026-10-01")
    oauth = sandbox.app.state.apis["withings"].oauth
    narrow = oauth._issue("access", {"h": "ada", "c": "sandbox", "s": "user.metrics", "f": "x"}, None)
    assert fetch(client(narrow), "measure", "2026-10-01", "2026-10-01")
    with pytest.raises(PermissionMissingError):
        fetch(client(narrow), "activity", "2026-10-01", "2026-10-01")


def test_refused_parameters_are_an_error_of_ours(client: Connect) -> None:
    with pytest.raises(RequestRejectedError):
        client().request("POST", "/v2/measure", form={"action": "getactivity", "startdateymd": "today"})


class Canned:
    """A client that answers from a list."""

    provider = "withings"
    provider_user_id: str | None = "7"

    def __init__(self, *bodies: Any) -> None:
        self.bodies = [body if isinstance(body, bytes) else orjson.dumps({"body": body}) for body in bodies]
        self.forms: list[dict[str, str]] = []

    def request(self, method: str, path: str, *, form: dict[str, str]) -> httpx.Response:
        self.forms.append(form)
        return httpx.Response(200, content=self.bodies.pop(0))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<html>", "not JSON"),
        (b'{"status":0}', "no body"),
        ({"activities": [], "more": True}, "no usable more and offset"),
        ({"activities": [], "more": True, "offset": "5"}, "no usable more and offset"),
        ({"activities": [], "more": 2, "offset": 5}, "no usable more and offset"),
    ],
)
def test_page_that_cannot_be_paged_through_is_kept_and_reported(body: Any, problem: str) -> None:
    client: Any = Canned(body)
    pages = withings.fetch(
        client, PROVIDER.entity("activity"), Window(dt.date(2026, 10, 1), dt.date(2026, 10, 1))
    )
    assert next(pages).entity == "activity"
    with pytest.raises(MalformedResponseError, match=problem):
        next(pages)


def test_pages_that_go_round_in_a_circle_end() -> None:
    page = {"activities": [], "more": True, "offset": 5}
    client: Any = Canned(page, page)
    with pytest.raises(MalformedResponseError, match="circle"):
        fetch(client, "activity", "2026-10-01", "2026-10-01")


def test_values_are_asked_for_by_name() -> None:
    client: Any = Canned({"series": [], "more": False})
    fetch(client, "sleep", "2026-10-01", "2026-10-02")
    (form,) = client.forms
    assert (form["action"], form["startdateymd"], form["enddateymd"]) == (
        "getsummary",
        "2026-10-01",
        "2026-10-02",
    )
    assert {"sleep_score", "hr_min", "rr_average", "total_sleep_time"} <= set(form["data_fields"].split(","))


def test_tables_without_pages_cannot_be_fetched(client: Connect) -> None:
    with pytest.raises(ValueError, match="filled from other objects"):
        fetch(client(), "sleep_sample", "2026-10-01", "2026-10-01")


def test_identify_tells_the_zone_of_the_device_used_last() -> None:
    devices = [
        {"timezone": "Europe/Paris", "last_session_date": 5},
        {"timezone": "America/New_York", "last_session_date": 9},
        {"timezone": None, "last_session_date": 12},
        {"timezone": "Asia/Tokyo", "last_session_date": None},
    ]
    client: Any = Canned({"devices": devices}, {"devices": []})
    account = withings.identify(client)
    assert (account.provider_user_id, account.profile) == ("7", {"time_zone": "America/New_York"})
    assert withings.identify(client).profile == {}
    client.provider_user_id = None
    with pytest.raises(MalformedResponseError, match="no user id"):
        withings.identify(client)


# Webhook -------------------------------------------------------------------------------------------------

WEBHOOK = PROVIDER.webhook
assert WEBHOOK is not None


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"userid=7&appli=1&startdate=1792888200&enddate=1792888201", ["measure"]),
        (b"userid=7&appli=4&startdate=1792888200&enddate=1792888201", ["measure"]),
        (b"userid=7&appli=16&date=2026-10-25", ["activity", "intraday_activity", "workout"]),
        (b"userid=7&appli=44&startdate=1792888200&enddate=1792888201", ["sleep"]),
    ],
)
def test_notice_names_what_to_fetch_and_for_which_day(body: bytes, told: list[str]) -> None:
    found = WEBHOOK.events(body)
    assert [event.entity for event in found] == told
    day = dt.date(2026, 10, 25)
    assert {(event.kind, event.provider_user_id, event.window) for event in found} == {
        ("changed", "7", Window(day, day))
    }


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"userid=7&appli=46&action=unlink", "deauthorized"),
        (b"userid=7&appli=46&action=delete", "deauthorized"),
        (b"userid=7&appli=46&action=update", "other"),
        (b"userid=7&appli=50&startdate=1792888200", "other"),
    ],
)
def test_other_notices(body: bytes, kind: str) -> None:
    (event,) = WEBHOOK.events(body)
    assert (event.kind, event.entity) == (kind, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"appli=1", b"userid=7", b"userid=7&appli=x", b"userid=7&appli=16&date=soon", b"\xff=1"],
)
def test_what_is_no_notice_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        WEBHOOK.events(body)


def test_subscription_is_answered_and_a_notice_is_no_handshake() -> None:
    assert (WEBHOOK.secret_path, WEBHOOK.verify) == (True, None)
    assert WEBHOOK.challenge is not None
    for method, answer in (("HEAD", (200, "text/plain", b"")), ("POST", None)):
        request = WebhookRequest(method, "/hook", {}, {}, b"", NOW)
        assert WEBHOOK.challenge(request, ()) == answer


def test_the_sandbox_calls_are_read(sandbox: RunningSandbox) -> None:
    calls = sandbox.app.state.apis["withings"].webhooks("ada", dt.date(2026, 10, 7), "secret")
    found = {event.entity: event.window for call in calls for event in WEBHOOK.events(call.body)}
    assert found.keys() >= {"activity", "sleep", "measure"}
    assert found["activity"] == Window(dt.date(2026, 10, 7), dt.date(2026, 10, 7))


def test_declaration() -> None:
    assert PROVIDER.oauth is not None
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        assert (entity.scope is None) == (entity.endpoint is None)
        assert entity.scope is None or entity.scope in PROVIDER.oauth.scopes
