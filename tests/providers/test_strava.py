"""Strava: recorded activities, damaged documents, fetching from the sandbox, limits by the clock, notices."""

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

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import strava
from health_pipeline.providers.base import Page, Parsed, RawDocument, WebhookRequest, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
    RequestRejectedError,
)
from health_pipeline.providers.strava import PROVIDER
from health_pipeline.sandbox.server import RunningSandbox

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "strava"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no Strava payloads at {REAL}")

ACTIVITY = {
    "id": 154504250376823,
    "name": "Happy Friday",
    "athlete": {"id": 134815},
    "upload_id": 987654321234567891234,
    "sport_type": "MountainBikeRide",
    "type": "Ride",
    "start_date": "2026-05-02T12:15:09Z",
    "start_date_local": "2026-05-02T05:15:09Z",
    "timezone": "(GMT-08:00) America/Los_Angeles",
    "utc_offset": -25200.0,
    "elapsed_time": 4500,
    "moving_time": 4207,
    "distance": 28099,
    "total_elevation_gain": 516.0,
    "average_speed": 6.679,
    "has_heartrate": True,
    "average_heartrate": 140.3,
    "max_heartrate": 178,
    "calories": 870.2,
    "kilojoules": 788.7,
    "suffer_score": None,
    "device_name": "Garmin Edge 1030",
    "manual": False,
}
STREAMS = {
    "time": {"data": [0, 1, 5], "series_type": "time", "original_size": 3, "resolution": "high"},
    "heartrate": {"data": [91, None, 95], "series_type": "time", "original_size": 3, "resolution": "high"},
}
CONTEXT = {"activity_id": "7", "start_date": "2026-05-02T12:15:09Z", "utc_offset": "-25200.0"}


def parse(entity: str, body: Any, context: dict[str, str] | None = None) -> Parsed:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parsed = strava.parse(RawDocument(entity, content, RECEIVED_AT, context=context or {}))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def only(entity: str, body: Any, context: dict[str, str] | None = None) -> dict[str, Any]:
    parsed = parse(entity, body, context)
    assert parsed.quarantine.num_rows == 0, parsed.quarantine.to_pylist()
    (row,) = parsed.tables[entity].to_pylist()
    return row


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)


# Recorded payloads ---------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize("file", ["activity.3", "activity-manual.3"])
def test_recorded_activity_is_read_as_it_stands(file: str) -> None:
    content = (REAL / f"{file}.json").read_bytes()
    record = json.loads(content)
    parsed = parse("activity", content)
    assert (parsed.records_loaded, parsed.notes) == (1, ())
    (row,) = parsed.tables["activity"].to_pylist()
    assert row["id"] == str(record["id"])
    assert row["started_at"] == dt.datetime.fromisoformat(record["start_date"])
    # Both were recorded in California in winter, and say so only by their local time.
    assert (row["utc_offset_minutes"], row["time_zone"]) == (-480, "America/Los_Angeles")
    assert row["sport_type"] == record["type"]
    assert (row["elapsed_time_seconds"], row["distance_m"]) == (record["elapsed_time"], record["distance"])
    assert (row["calories_kcal"], row["manual"]) == (record["calories"], record["manual"])


@needs_real
@pytest.mark.parametrize("file", ["athlete.2", "athlete.3"])
def test_recorded_athlete_is_read_as_it_stands(file: str) -> None:
    content = (REAL / f"{file}.json").read_bytes()
    record = json.loads(content)
    row = only("athlete", content)
    assert (row["id"], row["weight_kg"]) == (str(record["id"]), record.get("weight"))
    assert row["functional_threshold_power_watts"] == record.get("ftp")


# Small payloads ------------------------------------------------------------------------------------------


def test_local_time_is_not_taken_for_utc() -> None:
    row = only("activity", ACTIVITY)
    assert row["started_at"] == utc(2026, 5, 2, 12, 15, 9)
    # Summer time, where the label of the zone has the offset of winter.
    assert (row["utc_offset_minutes"], row["time_zone"]) == (-420, "America/Los_Angeles")
    assert (row["id"], row["sport_type"]) == ("154504250376823", "MountainBikeRide")
    assert (row["elapsed_time_seconds"], row["moving_time_seconds"], row["distance_m"]) == (
        4500,
        4207,
        28099.0,
    )
    assert (row["average_heart_rate_bpm"], row["calories_kcal"], row["work_kilojoule"]) == (
        140.3,
        870.2,
        788.7,
    )


@pytest.mark.parametrize(
    ("local", "offset", "minutes"),
    [
        ("2026-05-02T17:45:09Z", None, 330),
        ("2026-05-02T12:15:09Z", 0, 0),
        ("2026-05-02T12:15:09Z", 20700, 345),
        (None, None, None),
        (None, -12600.0, -210),
    ],
)
def test_offset_is_said_or_the_distance_of_the_two_times(
    local: str | None, offset: float | None, minutes: int | None
) -> None:
    row = only("activity", {**ACTIVITY, "start_date_local": local, "utc_offset": offset})
    assert row["utc_offset_minutes"] == minutes


def test_offset_of_no_place_on_earth_is_no_offset() -> None:
    said = parse("activity", {**ACTIVITY, "utc_offset": 1e308})
    assert said.quarantine.select(["reason", "field"]).to_pylist() == [
        {"reason": "wrong_type", "field": "utc_offset"}
    ]
    printed = only("activity", {**ACTIVITY, "start_date_local": "0001-01-01T00:00:00Z", "utc_offset": None})
    assert printed["utc_offset_minutes"] is None


def test_older_documents_have_only_the_type() -> None:
    assert only("activity", {**ACTIVITY, "sport_type": None})["sport_type"] == "Ride"


def test_new_fields_are_noted_and_names_and_places_are_not_staged() -> None:
    parsed = parse("activity", {**ACTIVITY, "vibe": "good", "start_latlng": [1.0, 2.0], "description": "x"})
    assert parsed.notes == ("activity: new field vibe",)
    assert not {"name", "description", "start_latlng"} & set(parsed.tables["activity"].schema.names)


@pytest.mark.parametrize(
    ("entity", "path", "value", "reason"),
    [
        ("activity", "id", None, "missing_field"),
        ("activity", "id", "154504250376823", "wrong_type"),
        ("activity", "start_date", None, "missing_field"),
        ("activity", "start_date", "2026-05-02T12:15:09", "wrong_type"),
        ("activity", "elapsed_time", None, "missing_field"),
        ("activity", "elapsed_time", 4500.5, "wrong_type"),
        ("activity", "distance", "28099", "wrong_type"),
        ("activity", "has_heartrate", 1, "wrong_type"),
        ("activity", "timezone", 8, "wrong_type"),
        ("heart_rate_stream", "time.data", None, "missing_field"),
        ("heart_rate_stream", "heartrate.data", [91, "92", 95], "wrong_type"),
        ("heart_rate_stream", "heartrate.data", [91, 92], "wrong_type"),
        ("athlete", "weight", "70", "wrong_type"),
    ],
)
def test_damaged_document_is_quarantined_with_its_field(
    entity: str, path: str, value: Any, reason: str
) -> None:
    body = copy.deepcopy({"activity": ACTIVITY, "heart_rate_stream": STREAMS, "athlete": {"id": 1}}[entity])
    *above, leaf = path.split(".")
    (body[above[0]] if above else body)[leaf] = value
    parsed = parse(entity, body, CONTEXT)
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["field"], refused["location"]) == (reason, path, "$")
    assert (parsed.records_loaded, parsed.tables[entity].num_rows) == (0, 0)


@pytest.mark.parametrize("entity", ["activity", "heart_rate_stream", "athlete"])
@pytest.mark.parametrize("content", [b"", b"[]", b"<html>", b'{"id": 1', b"null"])
def test_malformed_body_is_one_quarantine_row(entity: str, content: bytes) -> None:
    (refused,) = parse(entity, content).quarantine.to_pylist()
    assert refused["reason"] == "malformed_body"


def test_streams_are_samples_at_their_seconds() -> None:
    rows = parse("heart_rate_stream", STREAMS, CONTEXT).tables["heart_rate_stream"].to_pylist()
    assert [(row["recorded_at"], row["bpm"], row["utc_offset_minutes"]) for row in rows] == [
        (utc(2026, 5, 2, 12, 15, 9), 91.0, -420),
        (utc(2026, 5, 2, 12, 15, 14), 95.0, -420),
    ]
    assert {row["activity_id"] for row in rows} == {"7"}


def test_streams_without_heart_rate_are_skipped_and_counted() -> None:
    parsed = parse("heart_rate_stream", {"time": STREAMS["time"]}, CONTEXT)
    assert (parsed.records_in, parsed.records_loaded, parsed.skipped) == (1, 0, {"no_heart_rate": 1})


@pytest.mark.parametrize("missing", ["activity_id", "start_date"])
def test_streams_of_nobody_knows_when_are_refused(missing: str) -> None:
    context = {name: value for name, value in CONTEXT.items() if name != missing}
    assert parse("heart_rate_stream", STREAMS, context).quarantine.num_rows == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.none() | st.integers(30, 220)), max_size=40),
    st.integers(-14 * 4, 14 * 4),
)
def test_every_sample_comes_with_its_second(
    samples: list[tuple[int, int | None]], quarter_hours: int
) -> None:
    body = {"time": {"data": [s for s, _ in samples]}, "heartrate": {"data": [b for _, b in samples]}}
    parsed = parse("heart_rate_stream", body, {**CONTEXT, "utc_offset": str(900.0 * quarter_hours)})
    start = utc(2026, 5, 2, 12, 15, 9)
    assert [
        ((row["recorded_at"] - start).total_seconds(), row["bpm"], row["utc_offset_minutes"])
        for row in parsed.tables["heart_rate_stream"].to_pylist()
    ] == [(second, bpm, 15 * quarter_hours) for second, bpm in samples if bpm is not None]


# Fetching ------------------------------------------------------------------------------------------------


def client_of(sandbox: RunningSandbox, handle: str, scopes: tuple[str, ...] | None = None) -> ApiClient:
    api = sandbox.app.state.apis["strava"]
    claims = {"h": handle, "c": "sandbox", "s": " ".join(scopes or ()), "f": "narrow"}
    token = api.oauth.access_token(handle) if scopes is None else api.oauth._issue("access", claims, None)
    return ApiClient(
        "strava", f"{sandbox.url}/strava", lambda _: token, interpret=PROVIDER.interpret, max_wait=5.0
    )


def fetch(client: ApiClient, entity: str, start: str, end: str) -> list[Page]:
    window = Window(dt.date.fromisoformat(start), dt.date.fromisoformat(end))
    with client:
        return list(PROVIDER.fetch(client, PROVIDER.entity(entity), window))


def test_each_activity_of_the_window_comes_with_its_energy(sandbox: RunningSandbox) -> None:
    documents = [
        json.loads(page.content)
        for page in fetch(client_of(sandbox, "ben"), "activity", "2026-08-01", "2026-08-31")
    ]
    assert len(documents) > 10
    assert len({document["id"] for document in documents}) == len(documents)
    assert all(document["calories"] > 0 for document in documents)
    local = sorted(document["start_date_local"] for document in documents)
    assert local[0] > "2026-07-31" and local[-1] < "2026-09-02"


@pytest.mark.parametrize("handle", ["chen", "dana"])
def test_days_are_those_of_the_person(sandbox: RunningSandbox, handle: str) -> None:
    whole = {}
    for page in fetch(client_of(sandbox, handle), "activity", "2026-09-01", "2026-09-21"):
        document = json.loads(page.content)
        whole.setdefault(document["start_date_local"][:10], set()).add(document["id"])
    day = sorted(whole)[len(whole) // 2]
    found = {
        json.loads(page.content)["id"] for page in fetch(client_of(sandbox, handle), "activity", day, day)
    }
    assert whole[day] <= found


def test_streams_carry_what_their_bytes_do_not_say(sandbox: RunningSandbox) -> None:
    details = {
        str(d["id"]): d
        for d in (
            json.loads(p.content)
            for p in fetch(client_of(sandbox, "ben"), "activity", "2026-08-20", "2026-08-31")
        )
    }
    pages = fetch(client_of(sandbox, "ben"), "heart_rate_stream", "2026-08-20", "2026-08-31")
    assert {page.context["activity_id"] for page in pages} == {
        i for i, d in details.items() if d["has_heartrate"]
    }
    for page in pages:
        detail = details[page.context["activity_id"]]
        parsed = strava.parse(
            RawDocument("heart_rate_stream", page.content, RECEIVED_AT, context=page.context)
        )
        rows = parsed.tables["heart_rate_stream"].to_pylist()
        start = dt.datetime.fromisoformat(detail["start_date"])
        end = start + dt.timedelta(seconds=detail["elapsed_time"])
        assert all(start <= row["recorded_at"] < end for row in rows)
        assert round(sum(row["bpm"] for row in rows) / len(rows), 1) == detail["average_heartrate"]
        assert {row["utc_offset_minutes"] for row in rows} == {detail["utc_offset"] / 60}


Answer = Callable[[str, dict[str, str]], tuple[int, bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], ApiClient]]:
    """Starts a server that answers with a function of (path, query); gives its client."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> ApiClient:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                status, body = answer(url.path, {name: v[0] for name, v in parse_qs(url.query).items()})
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        return ApiClient("strava", url, lambda _: "token", interpret=PROVIDER.interpret, max_wait=5.0)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_list_goes_on_over_a_short_page_to_an_empty_one_and_passes_over_what_is_gone(
    serve: Callable[[Answer], ApiClient],
) -> None:
    asked = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, bytes]:
        asked.append((path, query))
        if path == "/athlete/activities":
            pages = {"1": [{"id": 11}, {"id": 12}], "2": [{"id": 13}]}
            return 200, orjson.dumps(pages.get(query["page"], []))
        if path.endswith("/12"):
            return 404, b'{"message": "Record Not Found"}'
        return 200, b' {"as": "sent"}'

    pages = fetch(serve(answer), "activity", "2026-11-20", "2026-11-20")
    assert [page.content for page in pages] == [b' {"as": "sent"}'] * 2
    listed = [params for path, params in asked if path == "/athlete/activities"]
    assert [params["page"] for params in listed] == ["1", "2", "3"]
    assert {params["per_page"] for params in listed} == {"200"}
    # From the first midnight on earth of the day to the last of the next.
    assert int(listed[0]["after"]) == dt.datetime.fromisoformat("2026-11-20T00:00:00+14:00").timestamp() - 1
    assert int(listed[0]["before"]) == dt.datetime.fromisoformat("2026-11-21T00:00:00-12:00").timestamp()
    assert [path for path, _ in asked if path.startswith("/activities")] == [
        f"/activities/{i}" for i in (11, 12, 13)
    ]


def test_missing_permission_is_told_from_a_dead_token_and_from_a_dead_application(
    sandbox: RunningSandbox, serve: Callable[[Answer], ApiClient]
) -> None:
    with pytest.raises(PermissionMissingError, match="tick it"):
        fetch(client_of(sandbox, "ada", ("read",)), "activity", "2026-09-01", "2026-09-03")
    inactive = b'{"errors": [{"resource": "Application", "field": "Status", "code": "Inactive"}]}'
    with pytest.raises(RequestRejectedError, match="owner has to subscribe"):
        fetch(serve(lambda path, query: (403, inactive)), "athlete", "2026-09-01", "2026-09-03")
    invalid = b'{"errors": [{"resource": "Athlete", "field": "access_token", "code": "invalid"}]}'
    with pytest.raises(AuthorizationError):
        fetch(serve(lambda path, query: (401, invalid)), "athlete", "2026-09-01", "2026-09-03")


@pytest.mark.parametrize("body", [b"<html>", b'{"message": "x"}', b'[{"id": "7"}]', b"[7]"])
def test_list_that_is_none_is_reported(serve: Callable[[Answer], ApiClient], body: bytes) -> None:
    with pytest.raises(MalformedResponseError, match="no list of activities"):
        fetch(serve(lambda path, query: (200, body)), "activity", "2026-09-01", "2026-09-03")


def test_identify(sandbox: RunningSandbox) -> None:
    with client_of(sandbox, "ben") as client:
        account = strava.identify(client)
    assert account.provider_user_id == str(sandbox.app.state.apis["strava"]._watches["ben"].athlete_id)
    assert account.profile == {"sex": "male", "weight_kg": 84.0}


# Limits --------------------------------------------------------------------------------------------------

AT = utc(2026, 11, 21, 12, 7, 30).timestamp()


def verdict(status: int, **headers: str) -> Any:
    named = {f"X-{name.replace('_', '-')}": value for name, value in headers.items()}
    return PROVIDER.interpret(httpx.Response(status, headers=named, content=b"{}"), AT)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"RateLimit_Limit": "200,2000", "RateLimit_Usage": "199,1999"}, None),
        ({"RateLimit_Limit": "200,2000", "RateLimit_Usage": "200,300"}, 451),
        ({"ReadRateLimit_Limit": "100,1000", "ReadRateLimit_Usage": "101,300"}, 451),
        ({"ReadRateLimit_Limit": "100,1000", "ReadRateLimit_Usage": "3,1000"}, 42_751),
        (
            {
                "RateLimit_Limit": "200,2000",
                "RateLimit_Usage": "150,1100",
                "ReadRateLimit_Limit": "100,1000",
                "ReadRateLimit_Usage": "100,1000",
            },
            42_751,
        ),
        ({"RateLimit_Limit": "200", "RateLimit_Usage": "many"}, None),
    ],
)
def test_what_is_used_up_comes_back_by_the_clock(headers: dict[str, str], wait: int | None) -> None:
    good = verdict(200, **headers)
    assert good is None if wait is None else (good.kind, good.wait_seconds) == ("good", wait)
    refused = verdict(429, **headers)
    assert (refused.kind, refused.wait_seconds) == ("rate_limited", wait or 451)


def test_429_of_the_sandbox_waits_for_the_next_quarter_hour(sandbox: RunningSandbox) -> None:
    fault = {"provider": "strava", "kind": "rate_limit", "count": None}
    httpx.post(f"{sandbox.url}/__faults", json=fault).raise_for_status()
    with pytest.raises(RateLimitedError) as caught:
        fetch(client_of(sandbox, "ada"), "athlete", "2026-09-01", "2026-09-01")
    assert caught.value.retry_at.minute % 15 == 0
    assert caught.value.retry_at - dt.datetime.now(dt.UTC) < dt.timedelta(minutes=15, seconds=5)


# Webhooks ------------------------------------------------------------------------------------------------


def handshake(method: str = "GET", **query: str) -> WebhookRequest:
    asked = {"hub.mode": "subscribe", "hub.challenge": "15f7d1a91c1f40f8a748fd134752feb3", **query}
    return WebhookRequest(method, "/hook", asked, {}, b"", RECEIVED_AT)


def test_handshake_is_answered_for_our_verify_token_alone() -> None:
    answer = strava.challenge(handshake(**{"hub.verify_token": "STRAVA"}), ["older", "STRAVA"])
    assert answer is not None
    status, content_type, body = answer
    assert (status, content_type) == (200, "application/json")
    assert orjson.loads(body) == {"hub.challenge": "15f7d1a91c1f40f8a748fd134752feb3"}
    for token in ("strava", "", "STRAVA "):
        refused = strava.challenge(handshake(**{"hub.verify_token": token}), ["older", "STRAVA"])
        assert refused is not None
        assert refused[0] == 403
        assert b"15f7" not in refused[2]
    assert strava.challenge(handshake("POST", **{"hub.verify_token": "STRAVA"}), ["STRAVA"]) is None
    assert strava.challenge(handshake(**{"hub.mode": "unsubscribe"}), ["STRAVA"]) is None


@pytest.mark.parametrize(
    ("object_type", "aspect", "updates", "kind", "entity"),
    [
        ("activity", "create", {}, "changed", "activity"),
        ("activity", "update", {"private": "true"}, "changed", "activity"),
        ("activity", "delete", {}, "deleted", "activity"),
        ("athlete", "update", {"authorized": "false"}, "deauthorized", None),
        ("athlete", "update", {"authorized": "true"}, "other", None),
        ("athlete", "delete", {}, "other", None),
        ("club", "update", {"authorized": "false"}, "other", None),
    ],
)
def test_events(
    object_type: str, aspect: str, updates: dict[str, str], kind: str, entity: str | None
) -> None:
    notice = {
        "object_type": object_type,
        "object_id": 1360128428,
        "aspect_type": aspect,
        "updates": updates,
        "owner_id": 134815,
        "subscription_id": 120475,
        "event_time": 1516126040,
    }
    event, *more = strava.events(orjson.dumps(notice))
    # With an activity that came or changed, its heart rate.
    assert [each.entity for each in more] == (["heart_rate_stream"] if kind == "changed" else [])
    assert (event.kind, event.entity, event.provider_user_id) == (kind, entity, "134815")
    assert event.event_type == f"{object_type}.{aspect}"
    assert event.record_ids == (("1360128428",) if entity else ())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"object_type": "activity", "aspect_type": "create"}'])
def test_body_that_is_no_notice(body: bytes) -> None:
    with pytest.raises(ValueError):
        strava.events(body)


def test_declaration() -> None:
    assert PROVIDER.oauth is not None
    assert PROVIDER.oauth.scope_separator == ","
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        assert entity.scope in PROVIDER.oauth.scopes
