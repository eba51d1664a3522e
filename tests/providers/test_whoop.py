"""WHOOP: recorded examples, damaged pages, fetching from the sandbox and from a real HTTP server, signed notices."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.oauth import connect_with_hint, refresher
from health_pipeline.providers import whoop
from health_pipeline.providers.base import Page, Parsed, RawDocument, WebhookRequest, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
)
from health_pipeline.providers.whoop import PROVIDER
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import load_settings

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "whoop_v2"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no WHOOP examples at {REAL}")

CYCLE = {
    "id": 93845,
    "user_id": 10129,
    "created_at": "2026-10-24T06:10:00.000Z",
    "updated_at": "2026-10-25T06:10:00.000Z",
    "start": "2026-10-23T21:05:44.774Z",
    "end": "2026-10-24T22:00:00.000Z",
    "timezone_offset": "+02:00",
    "score_state": "SCORED",
    "score": {"strain": 5.2951527, "kilojoule": 8288.297, "average_heart_rate": 68, "max_heart_rate": 141},
}
SLEEP_ID = "ecfc6a15-4661-442f-a9a4-f160dd7afae8"
RECOVERY = {
    "cycle_id": 93845,
    "sleep_id": SLEEP_ID,
    "user_id": 10129,
    "created_at": "2026-10-24T06:30:00.000Z",
    "updated_at": "2026-10-24T06:30:00.000Z",
    "score_state": "SCORED",
    "score": {
        "user_calibrating": False,
        "recovery_score": 44.0,
        "resting_heart_rate": 64.0,
        "hrv_rmssd_milli": 31.813562,
        "spo2_percentage": 95.6875,
        "skin_temp_celsius": 33.7,
    },
}
SLEEP = {
    "id": SLEEP_ID,
    "cycle_id": 93845,
    "v1_id": 93845,
    "user_id": 10129,
    "created_at": "2026-10-24T06:10:00.000Z",
    "updated_at": "2026-10-24T06:30:00.000Z",
    "start": "2026-10-23T21:05:44.774Z",
    "end": "2026-10-24T05:55:00.000Z",
    "timezone_offset": "+02:00",
    "nap": False,
    "score_state": "SCORED",
    "score": {
        "stage_summary": {
            "total_in_bed_time_milli": 30272735,
            "total_awake_time_milli": 1403507,
            "total_no_data_time_milli": 0,
            "total_light_sleep_time_milli": 14905851,
            "total_slow_wave_sleep_time_milli": 6630370,
            "total_rem_sleep_time_milli": 5879573,
            "sleep_cycle_count": 3,
            "disturbance_count": 12,
        },
        "sleep_needed": {
            "baseline_milli": 27395716,
            "need_from_sleep_debt_milli": 352230,
            "need_from_recent_strain_milli": 208595,
            "need_from_recent_nap_milli": -12312,
        },
        "respiratory_rate": 16.11328125,
        "sleep_performance_percentage": 98,
        "sleep_consistency_percentage": 90.0,
        "sleep_efficiency_percentage": 91.69533,
    },
}
WORKOUT = {
    "id": "b6d5c1e4-2f6b-4f4c-9a3d-3b7f6d1c9a10",
    "user_id": 9012,
    "created_at": "2026-10-24T11:25:44.774Z",
    "updated_at": "2026-10-24T14:25:44.774Z",
    "start": "2026-10-24T10:25:44.774Z",
    "end": "2026-10-24T11:25:44.774Z",
    "timezone_offset": "-05:30",
    "sport_name": "running",
    "sport_id": 0,
    "score_state": "SCORED",
    "score": {
        "strain": 8.2463,
        "average_heart_rate": 123,
        "max_heart_rate": 146,
        "kilojoule": 1569.34,
        "percent_recorded": 1.0,
        "distance_meter": 1772.77,
        "altitude_gain_meter": 46.6,
        "altitude_change_meter": -0.78,
        "zone_durations": {
            f"zone_{zone}_milli": 13458 for zone in ("zero", "one", "two", "three", "four", "five")
        },
    },
}
SHAPES = {"cycle": CYCLE, "recovery": RECOVERY, "sleep": SLEEP, "workout": WORKOUT}


def parse(entity: str, records: list[Any] | bytes, context: dict[str, str] | None = None) -> Parsed:
    content = records if isinstance(records, bytes) else orjson.dumps({"records": records})
    parsed = whoop.parse(RawDocument(entity, content, RECEIVED_AT, context=context or {}))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def only(entity: str, record: dict[str, Any], context: dict[str, str] | None = None) -> dict[str, Any]:
    parsed = parse(entity, [record], context)
    assert parsed.quarantine.num_rows == 0, parsed.quarantine.to_pylist()
    (row,) = parsed.tables[entity].to_pylist()
    return row


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)


def replaced(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *parents, leaf = path.split(".")
    node = record
    for step in parents:
        node = node[step]
    node[leaf] = value
    return record


# Recorded examples ---------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize(
    ("entity", "expected", "notes"),
    [
        ("cycle", {"id": "93845", "strain": 5.2, "kilojoule": 8288.297, "max_heart_rate_bpm": 141.0}, ()),
        (
            "recovery",
            {
                "sleep_id": "10235",
                "recovery_score_percent": 44.0,
                "hrv_rmssd_ms": 31.813562,
                "skin_temperature_celsius": 33.7,
            },
            (),
        ),
        (
            "sleep",
            {
                "nap": False,
                "total_rem_sleep_time_milli": 5400000,
                "need_from_recent_nap_milli": -8647416,
                "respiratory_rate_per_minute": 16.11328125,
            },
            (),
        ),
        (
            "workout",
            {"id": "1043", "kilojoule": 1569.044, "altitude_change_m": -303.5, "sport_name": None},
            ("workout: new field score.zone_duration",),
        ),
    ],
)
def test_recorded_example_is_read_as_it_stands(
    entity: str, expected: dict[str, Any], notes: tuple[str, ...]
) -> None:
    example = json.loads((REAL / f"whoop-{entity}-example.json").read_bytes())["response"]
    parsed = parse(entity, orjson.dumps(example))
    assert (parsed.records_in, parsed.records_loaded, parsed.notes) == (1, 1, notes)
    (row,) = parsed.tables[entity].to_pylist()
    assert {name: row[name] for name in expected} == expected
    if entity != "recovery":
        assert row["utc_offset_minutes"] == -300


# Small payloads ------------------------------------------------------------------------------------------


def test_cycle_in_progress_has_no_end_and_its_values_so_far() -> None:
    row = only("cycle", {name: value for name, value in CYCLE.items() if name != "end"})
    assert (row["started_at"], row["ended_at"]) == (utc(2026, 10, 23, 21, 5, 44, 774000), None)
    assert (row["id"], row["strain"], row["utc_offset_minutes"]) == ("93845", 5.2951527, 120)


@pytest.mark.parametrize("entity", SHAPES)
@pytest.mark.parametrize("state", ["PENDING_SCORE", "UNSCORABLE"])
@pytest.mark.parametrize("absent", [True, False])
def test_record_without_a_score_is_loaded_without_values(entity: str, state: str, absent: bool) -> None:
    record = {**SHAPES[entity], "score_state": state, "score": None}
    if absent:
        del record["score"]
    row = only(entity, record)
    assert row["score_state"] == state
    values = {"strain", "recovery_score_percent", "total_in_bed_time_milli"} & set(row)
    assert values
    assert all(row[name] is None for name in values)


def test_recovery_takes_the_times_of_its_sleep_from_the_page() -> None:
    context = {SLEEP_ID: "2026-10-23T21:05:44.774Z 2026-10-24T05:55:00.000Z +05:45"}
    row = only("recovery", RECOVERY, context)
    assert (row["started_at"], row["ended_at"]) == (
        utc(2026, 10, 23, 21, 5, 44, 774000),
        utc(2026, 10, 24, 5, 55),
    )
    assert row["utc_offset_minutes"] == 345
    assert (row["cycle_id"], row["spo2_percent"], row["user_calibrating"]) == ("93845", 95.6875, False)


@pytest.mark.parametrize("said", [None, "", "yesterday today +02:00", "2026-10-23T21:05:44.774Z"])
def test_recovery_whose_sleep_is_not_known_is_loaded_all_the_same(said: str | None) -> None:
    row = only("recovery", RECOVERY, {} if said is None else {SLEEP_ID: said})
    assert (row["ended_at"], row["utc_offset_minutes"]) == (None, None)
    assert row["created_at"] == utc(2026, 10, 24, 6, 30)


def test_recovery_of_an_older_strap_has_no_oxygen() -> None:
    score = {
        name: RECOVERY["score"][name] for name in ("user_calibrating", "recovery_score", "resting_heart_rate")
    }
    row = only("recovery", {**RECOVERY, "score": {**score, "hrv_rmssd_milli": 31.8}})
    assert (row["spo2_percent"], row["skin_temperature_celsius"], row["hrv_rmssd_ms"]) == (None, None, 31.8)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("Z", 0), ("+00:00", 0), ("-05:00", -300), ("+0530", 330), ("+13:45", 825), ("-00:30", -30)],
)
def test_offsets(text: str, minutes: int) -> None:
    assert only("workout", {**WORKOUT, "timezone_offset": text})["utc_offset_minutes"] == minutes


def test_body_measurement_is_of_when_it_was_seen() -> None:
    body = {"height_meter": 1.8288, "weight_kilogram": 90.7185, "max_heart_rate": 200}
    parsed = parse("body_measurement", orjson.dumps(body))
    assert parsed.tables["body_measurement"].to_pylist() == [
        {"height_m": 1.8288, "weight_kg": 90.7185, "max_heart_rate_bpm": 200.0, "seen_at": RECEIVED_AT}
    ]
    refused = parse(
        "body_measurement", orjson.dumps({**body, "weight_kilogram": "90"})
    ).quarantine.to_pylist()
    assert [(row["reason"], row["field"], row["location"]) for row in refused] == [
        ("wrong_type", "weight_kilogram", "$")
    ]


def test_new_fields_are_noted() -> None:
    night = replaced(replaced(SLEEP, "score.stage_summary.total_light_nap_milli", 1), "mood", "good")
    assert parse("sleep", [night]).notes == (
        "sleep: new field mood",
        "sleep: new field score.stage_summary.total_light_nap_milli",
    )
    assert parse("sleep", [SLEEP]).notes == ()


@pytest.mark.parametrize(
    ("entity", "path", "value", "reason", "field"),
    [
        ("cycle", "id", None, "missing_field", "id"),
        ("cycle", "id", 1.5, "wrong_type", "id"),
        ("cycle", "start", "2026-10-23T21:05:44.774", "wrong_type", "start"),
        ("cycle", "timezone_offset", "Europe/Paris", "wrong_type", "timezone_offset"),
        ("cycle", "timezone_offset", None, "missing_field", "timezone_offset"),
        ("cycle", "timezone_offset", 2, "wrong_type", "timezone_offset"),
        ("cycle", "score.strain", "5.2", "wrong_type", "score.strain"),
        ("cycle", "score.strain", None, "missing_field", "score.strain"),
        ("cycle", "score", [5.2], "wrong_type", "score"),
        ("cycle", "score_state", None, "missing_field", "score_state"),
        ("recovery", "sleep_id", None, "missing_field", "sleep_id"),
        ("recovery", "created_at", None, "missing_field", "created_at"),
        ("recovery", "score.hrv_rmssd_milli", True, "wrong_type", "score.hrv_rmssd_milli"),
        ("sleep", "end", None, "missing_field", "end"),
        ("sleep", "nap", "no", "wrong_type", "nap"),
        (
            "sleep",
            "score.stage_summary.total_rem_sleep_time_milli",
            1.5,
            "wrong_type",
            "score.stage_summary.total_rem_sleep_time_milli",
        ),
        ("workout", "id", "", "wrong_type", "id"),
        ("workout", "sport_name", 7, "wrong_type", "sport_name"),
    ],
)
def test_damaged_record_is_quarantined_alone(
    entity: str, path: str, value: Any, reason: str, field: str
) -> None:
    record = SHAPES[entity]
    damaged = replaced(record, path, value)
    parsed = parse(entity, [record, damaged, record])
    assert parsed.quarantine.to_pylist() == [
        {
            "entity": entity,
            "reason": reason,
            "field": field,
            "location": "records[1]",
            "original": orjson.dumps(damaged).decode(),
        }
    ]
    assert parsed.tables[entity] == parse(entity, [record, record]).tables[entity]


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b'{"records": [{"id": 1', b'{"records": {}}', b"[]", b'{"error": 1}']
)
def test_malformed_body_is_one_quarantine_row(content: bytes) -> None:
    parsed = parse("sleep", content)
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["location"], parsed.records_in) == ("malformed_body", "$", 1)


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.just([1])
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_the_damage_records_add_up_and_good_ones_are_unharmed(data: st.DataObject) -> None:
    entity = data.draw(st.sampled_from(sorted(SHAPES)))
    record = SHAPES[entity]
    path = data.draw(st.sampled_from([*record, *(f"score.{name}" for name in record["score"])]))
    parsed = parse(entity, [record, replaced(record, path, data.draw(JUNK)), data.draw(JUNK), record])
    assert parsed.records_in == 4 == parsed.records_loaded + parsed.quarantine.num_rows
    assert parsed.tables[entity].to_pylist()[0] == parse(entity, [record]).tables[entity].to_pylist()[0]
    assert "records[2]" in parsed.quarantine["location"].to_pylist()


# Fetching ------------------------------------------------------------------------------------------------


def client_of(sandbox: RunningSandbox, handle: str, scopes: tuple[str, ...] | None = None) -> ApiClient:
    api = sandbox.app.state.apis["whoop"]
    token = api.oauth.access_token(handle) if scopes is None else _narrow_token(api, handle, scopes)
    return ApiClient("whoop", f"{sandbox.url}/whoop", lambda _: token, interpret=PROVIDER.interpret)


def _narrow_token(api: Any, handle: str, scopes: tuple[str, ...]) -> str:
    claims = {"h": handle, "c": "sandbox", "s": " ".join(scopes), "f": "narrow"}
    return str(api.oauth._issue("access", claims, None))


def fetch(client: ApiClient, entity: str, start: str, end: str) -> list[Page]:
    window = Window(dt.date.fromisoformat(start), dt.date.fromisoformat(end))
    with client:
        return list(PROVIDER.fetch(client, PROVIDER.entity(entity), window))


def records(pages: list[Page]) -> list[dict[str, Any]]:
    return [record for page in pages for record in json.loads(page.content)["records"]]


def test_all_pages_of_a_window_come_and_hold_each_night_once(sandbox: RunningSandbox) -> None:
    pages = fetch(client_of(sandbox, "ada"), "sleep", "2026-08-01", "2026-09-30")
    found = records(pages)
    assert len(pages) == 3
    assert [len(json.loads(page.content)["records"]) for page in pages[:-1]] == [25, 25]
    assert len({record["id"] for record in found}) == len(found) > 50
    starts = [record["start"] for record in found]
    assert starts == sorted(starts, reverse=True)
    assert starts[0] > "2026-09-29"
    assert starts[-1] < "2026-08-01T04"


@pytest.mark.parametrize("handle", ["chen", "eli"])
def test_window_of_a_day_holds_the_night_that_ended_on_it_wherever_the_person_is(
    sandbox: RunningSandbox, handle: str
) -> None:
    ends = set()
    for record in records(fetch(client_of(sandbox, handle), "sleep", "2026-09-10", "2026-09-10")):
        offset = dt.datetime.fromisoformat(f"2026-01-01T00:00:00{record['timezone_offset']}").utcoffset()
        ends.add((dt.datetime.fromisoformat(record["end"]) + offset).date().isoformat())
    assert "2026-09-10" in ends


def test_recoveries_bring_the_times_of_their_sleeps(sandbox: RunningSandbox) -> None:
    sleeps = {
        r["id"]: r for r in records(fetch(client_of(sandbox, "ben"), "sleep", "2026-07-01", "2026-09-30"))
    }
    pages = fetch(client_of(sandbox, "ben"), "recovery", "2026-08-01", "2026-08-31")
    assert len(pages) == 2
    rows = []
    for page in pages:
        parsed = whoop.parse(RawDocument("recovery", page.content, RECEIVED_AT, context=page.context))
        rows += parsed.tables["recovery"].to_pylist()
    assert len(rows) > 28
    for row in rows:
        sleep = sleeps[row["sleep_id"]]
        assert row["started_at"] == dt.datetime.fromisoformat(sleep["start"])
        assert row["ended_at"] == dt.datetime.fromisoformat(sleep["end"])
    assert {row["utc_offset_minutes"] for row in rows} == {120, -240}


def test_recoveries_without_the_permission_for_sleep_come_without_times(sandbox: RunningSandbox) -> None:
    client = client_of(sandbox, "ada", ("read:recovery", "read:profile"))
    (page,) = fetch(client, "recovery", "2026-09-01", "2026-09-03")
    assert page.context == {}
    assert records([page])


def test_missing_scope_is_told_from_a_dead_token(sandbox: RunningSandbox) -> None:
    with pytest.raises(PermissionMissingError, match="'read:workout' was not granted"):
        fetch(client_of(sandbox, "ada", ("read:profile",)), "workout", "2026-09-01", "2026-09-03")
    with pytest.raises(AuthorizationError):
        fetch(client_of(sandbox, "ada", ()), "workout", "2026-09-01", "2026-09-03")


def test_identify_gives_the_user_id_and_nothing_of_the_person(sandbox: RunningSandbox) -> None:
    with client_of(sandbox, "ada") as client:
        account = whoop.identify(client)
    assert account.provider_user_id == str(sandbox.app.state.apis["whoop"]._documents["ada"].user_id)
    assert account.profile == {}


Answer = Callable[[str, dict[str, str]], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], ApiClient]]:
    """Starts a server that answers with a function of (path, query); gives its client, which does not wait."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> ApiClient:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                status, headers, body = answer(url.path, query)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        return ApiClient("whoop", url, lambda _: "token", interpret=PROVIDER.interpret, max_wait=5.0)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_next_page_is_asked_for_by_next_token_in_camel_case(serve: Callable[[Answer], ApiClient]) -> None:
    asked = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        asked.append((path, query))
        if "nextToken" in query:
            return 200, {}, b'{"records": []}'
        return 200, {}, b'{"records": [], "next_token": "t1"}'

    assert len(fetch(serve(answer), "cycle", "2026-11-14", "2026-11-20")) == 2
    window = {"limit": "25", "start": "2026-11-13T10:00:00.000Z", "end": "2026-11-21T12:00:00.000Z"}
    assert asked == [("/v2/cycle", window), ("/v2/cycle", {**window, "nextToken": "t1"})]


@pytest.mark.parametrize("body", [b"<html>", b'{"records": 1}', b'{"records": [], "next_token": 7}'])
def test_page_that_cannot_be_paged_through_is_kept_and_reported(
    serve: Callable[[Answer], ApiClient], body: bytes
) -> None:
    window = Window(dt.date(2026, 11, 20), dt.date(2026, 11, 20))
    with serve(lambda path, query: (200, {}, body)) as client:
        pages = whoop.fetch(client, PROVIDER.entity("cycle"), window)
        assert next(pages).content == body
        with pytest.raises(MalformedResponseError, match="the rest of the pages is unknown"):
            next(pages)


def test_pages_that_go_round_in_a_circle_end(serve: Callable[[Answer], ApiClient]) -> None:
    with pytest.raises(MalformedResponseError, match="circle"):
        fetch(
            serve(lambda path, query: (200, {}, b'{"records": [], "next_token": "t"}')),
            *("cycle", "2026-11-20", "2026-11-20"),
        )


def test_the_answer_that_uses_up_the_minute_holds_the_next_call_back(
    serve: Callable[[Answer], ApiClient],
) -> None:
    headers = {
        "X-RateLimit-Limit": "100, 100;window=60",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "40",
    }
    asked = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        asked.append(path)
        return 200, headers, b'{"records": [], "next_token": "t1"}'

    before = dt.datetime.now(dt.UTC)
    with pytest.raises(RateLimitedError) as caught:
        fetch(serve(answer), "cycle", "2026-11-20", "2026-11-20")
    assert len(asked) == 1
    assert dt.timedelta(seconds=35) < caught.value.retry_at - before < dt.timedelta(seconds=45)


def test_429_says_in_seconds_when_to_come_back(serve: Callable[[Answer], ApiClient]) -> None:
    before = dt.datetime.now(dt.UTC)
    with pytest.raises(RateLimitedError) as caught:
        fetch(
            serve(lambda path, query: (429, {"X-RateLimit-Reset": "3000"}, b"{}")),
            *("cycle", "2026-11-20", "2026-11-20"),
        )
    assert dt.timedelta(seconds=2990) < caught.value.retry_at - before < dt.timedelta(seconds=3010)


# Tokens --------------------------------------------------------------------------------------------------


def endpoint(url: str) -> Endpoint:
    return endpoint_of(PROVIDER, load_settings().model_copy(update={"sandbox_url": url}))


def test_tokens_of_the_sandbox_are_renewed(sandbox: RunningSandbox) -> None:
    tokens = connect_with_hint(endpoint(sandbox.url), "ada")
    assert set(tokens.scopes) == set(PROVIDER.oauth.scopes)
    assert tokens.refresh_token is not None
    renewed = refresher(endpoint(sandbox.url))(tokens.refresh_token)
    assert renewed.refresh_token not in (None, tokens.refresh_token)


def test_renewal_asks_for_another_refresh_token() -> None:
    asked: list[dict[str, list[str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            body = (
                b'{"access_token": "a2", "refresh_token": "r2", "expires_in": 3600, "token_type": "bearer"}'
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        renewed = refresher(endpoint(f"http://127.0.0.1:{server.server_port}"))("r1")
        server.shutdown()
    assert renewed.refresh_token == "r2"
    assert (asked[0]["grant_type"], asked[0]["scope"]) == (["refresh_token"], ["offline"])


# Webhooks ------------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)
SECRET = "client-secret"
NOTICE = (
    b'{"user_id":456,"id":"550e8400-e29b-41d4-a716-446655440000","type":"workout.updated","trace_id":"e369"}'
)


def signed(
    body: bytes = NOTICE, secret: str = SECRET, timestamp: str = "1795262400000", **headers: str
) -> WebhookRequest:
    proof = base64.b64encode(hmac.digest(secret.encode(), timestamp.encode() + body, hashlib.sha256)).decode()
    sent = {"x-whoop-signature": proof, "x-whoop-signature-timestamp": timestamp, **headers}
    return WebhookRequest("POST", "/hook", {}, {name: (value,) for name, value in sent.items()}, body, NOW)


def test_signature_of_a_known_message() -> None:
    # Worked out once with openssl: printf '1795262400000{}' | openssl dgst -sha256 -hmac client-secret -binary | base64
    request = signed(b"{}")
    assert request.header("x-whoop-signature") == "L9/b1BvTY70mkozP9Gqd4BQoHpXUhcqGWxkZ2Ejii+s="
    assert whoop.verify(request, [SECRET])


def test_any_of_the_active_secrets_proves_a_call() -> None:
    assert whoop.verify(signed(), ["older", SECRET])
    assert not whoop.verify(signed(), ["older"])
    assert not whoop.verify(signed(), [])


@pytest.mark.parametrize("minutes", [-6, 6, -60, 1_000_000])
def test_call_of_another_time_is_refused(minutes: int) -> None:
    timestamp = str(int((NOW.timestamp() + 60 * minutes) * 1000))
    assert not whoop.verify(signed(timestamp=timestamp), [SECRET])


@pytest.mark.parametrize("timestamp", ["1795262400", "", "-1795262400000", "1795262400000.0", "²", "now"])
def test_timestamp_that_is_not_of_epoch_milliseconds_is_refused(timestamp: str) -> None:
    assert not whoop.verify(signed(timestamp=timestamp), [SECRET])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(NOTICE) - 1), bit=st.integers(0, 7))
def test_changed_body_is_refused(place: int, bit: int) -> None:
    request = signed()
    changed = bytearray(request.body)
    changed[place] ^= 1 << bit
    assert not whoop.verify(WebhookRequest("POST", "/", {}, request.headers, bytes(changed), NOW), [SECRET])


def test_missing_repeated_or_unreadable_signature_is_refused() -> None:
    good = signed()
    for signature in ((), (good.headers["x-whoop-signature"][0],) * 2, ("***",), ("",), ("é",)):
        headers = {**good.headers, "x-whoop-signature": signature}
        assert not whoop.verify(WebhookRequest("POST", "/", {}, headers, NOTICE, NOW), [SECRET])


def test_events() -> None:
    (event,) = whoop.events(NOTICE)
    assert (event.kind, event.entity, event.provider_user_id) == ("changed", "workout", "456")
    assert event.record_ids == ("550e8400-e29b-41d4-a716-446655440000",)
    night = [
        {"user_id": 1, "id": SLEEP_ID, "type": t, "trace_id": "t"}
        for t in ("sleep.deleted", "recovery.deleted")
    ]
    told = [event for notice in night for event in whoop.events(orjson.dumps(notice))]
    assert [(event.kind, event.entity, event.record_ids) for event in told] == [
        ("deleted", "sleep", (SLEEP_ID,)),
        ("deleted", "recovery", (SLEEP_ID,)),
    ]
    assert len({event.event_id for event in told}) == 2
    (other,) = whoop.events(b'{"user_id": 1, "id": 7, "type": "strain.celebrated"}')
    assert (other.kind, other.entity, other.event_id) == ("other", None, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"type": "sleep.updated"}', b'{"id": 1, "type": 2}'])
def test_body_that_is_no_notice(body: bytes) -> None:
    with pytest.raises(ValueError):
        whoop.events(body)


def test_declaration() -> None:
    assert PROVIDER.oauth is not None
    assert PROVIDER.oauth.scopes[-1] == "offline"
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        assert entity.scope in PROVIDER.oauth.scopes
