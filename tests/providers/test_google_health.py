"""Google Health: values and damage of parsed pages, fetching over HTTP from the sandbox, calls to us."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import google_health
from health_pipeline.providers.base import Page, Parsed, RawDocument, WebhookRequest, Window
from health_pipeline.providers.google_health import PROVIDER
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
    RequestRejectedError,
)
from health_pipeline.sandbox.server import RunningSandbox

RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)
DAY = dt.date(2026, 11, 10)
ROLL_UPS = ("floors", "total_calories", "active_minutes", "active_zone_minutes")
FETCHED = [entity for entity in PROVIDER.entities if entity.endpoint is not None]

INTERVAL = {
    "startTime": "2026-11-20T12:00:00.123456789Z",
    "startUtcOffset": "-18000s",
    "endTime": "2026-11-20T12:01:00Z",
    "endUtcOffset": "-14400s",
    "civilStartTime": {"date": {"year": 2026, "month": 11, "day": 20}, "time": {"hours": 7}},
}
PULSE = {
    "dataSource": {"platform": "FITBIT", "device": {"displayName": "Pixel Watch", "formFactor": "WATCH"}},
    "heartRate": {
        "sampleTime": {"physicalTime": "2026-11-20T12:00:05Z", "utcOffset": "20700s"},
        "beatsPerMinute": "61",
        "metadata": {"motionContext": "SEDENTARY", "sensorLocation": "WRIST"},
    },
}
NIGHT = {
    "dataPointName": "users/8512524441117254421/dataTypes/sleep/dataPoints/night-1",
    "sleep": {
        "interval": INTERVAL | {"endTime": "2026-11-20T19:00:00Z"},
        "type": "STAGES",
        "stages": [
            {"startTime": "2026-11-20T12:00:00Z", "endTime": "2026-11-20T13:00:00Z", "type": "LIGHT"},
            {"startTime": "2026-11-20T13:00:00Z", "endTime": "2026-11-20T13:30:30Z", "type": "DEEP"},
        ],
        "metadata": {"mainSleep": True, "processed": True, "stagesStatus": "SUCCEEDED"},
        "summary": {
            "minutesInSleepPeriod": "420",
            "minutesAsleep": "390",
            "minutesAwake": "30",
            "stagesSummary": [{"type": "DEEP", "minutes": "80", "count": "3"}, {"type": "REM", "count": "0"}],
        },
        "updateTime": "2026-11-20T19:40:00Z",
    },
}
RUN = {
    "dataPointName": "users/me/dataTypes/exercise/dataPoints/run-1",
    "exercise": {
        "interval": INTERVAL,
        "exerciseType": "RUNNING",
        "activeDuration": "1830.5s",
        "metricsSummary": {
            "caloriesKcal": 410.5,
            "distanceMillimeters": 6500000,
            "steps": "5021",
            "averageHeartRateBeatsPerMinute": "151",
            "elevationGainMillimeters": 42000.0,
        },
    },
}


def parse(entity: str, points: list[Any] | bytes, **envelope: Any) -> Parsed:
    name = "rollupDataPoints" if entity in ROLL_UPS else "dataPoints"
    content = points if isinstance(points, bytes) else orjson.dumps({name: points, **envelope})
    parsed = google_health.parse(RawDocument(entity, content, RECEIVED_AT))
    for table_name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(table_name).schema
        table.validate(full=True)
    return parsed


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def refused(parsed: Parsed) -> list[tuple[str, str | None, str]]:
    return [(row["reason"], row["field"], row["location"]) for row in parsed.quarantine.to_pylist()]


def of_day(**said: Any) -> dict[str, Any]:
    date = {"date": {"year": 2026, "month": 11, "day": 20}, "time": {}}
    return {"civilStartTime": date, "civilEndTime": date, **said}


# What a page becomes -------------------------------------------------------------------------------------


def test_a_sample_keeps_its_instant_offset_and_device() -> None:
    (row,) = rows(parse("heart_rate", [PULSE]), "heart_rate")
    assert row == {
        "recorded_at": dt.datetime(2026, 11, 20, 12, 0, 5, tzinfo=dt.UTC),
        "utc_offset_minutes": 345,
        "bpm": 61,
        "motion_context": "SEDENTARY",
        "device": "Pixel Watch",
        "platform": "FITBIT",
        "recording_method": None,
    }


def test_whole_numbers_come_as_strings_or_plain_and_nothing_else() -> None:
    def pulse(value: Any) -> dict[str, Any]:
        return {"heartRate": PULSE["heartRate"] | {"beatsPerMinute": value}}

    good, bad = ["61", 62, "63", 64.0], ["", "6e1", "0x3f", " 61", "61.0", 61.5, True, None, "99999", ["61"]]
    parsed = parse("heart_rate", [pulse(value) for value in (*good, *bad)])
    assert [row["bpm"] for row in rows(parsed, "heart_rate")] == [61, 62, 63, 64]
    assert refused(parsed) == [
        (
            "missing_field" if value is None else "wrong_type",
            "heartRate.beatsPerMinute",
            f"dataPoints[{place}]",
        )
        for place, value in enumerate(bad, start=len(good))
    ]


def test_a_night_and_its_stages() -> None:
    parsed = parse("sleep", [NIGHT])
    (night,) = rows(parsed, "sleep")
    # The user in the name may be a number or `me`.
    assert night["id"] == "night-1"
    assert night["recorded_at"] == dt.datetime(2026, 11, 20, 12, 0, 0, 123456, dt.UTC)
    assert (night["utc_offset_minutes"], night["end_utc_offset_minutes"]) == (-300, -240)
    assert (night["main_sleep"], night["nap"], night["processed"]) == (True, None, True)
    assert (night["sleep_period_minutes"], night["asleep_minutes"], night["awake_minutes"]) == (420, 390, 30)
    assert (night["deep_minutes"], night["rem_minutes"], night["light_minutes"]) == (80, 0, 0)
    assert [
        (row["stage"], row["started_at"].hour, (row["ended_at"] - row["started_at"]).seconds)
        for row in rows(parsed, "sleep_stage")
    ] == [("LIGHT", 12, 3600), ("DEEP", 13, 1830)]
    assert {row["sleep_id"] for row in rows(parsed, "sleep_stage")} == {"night-1"}


def test_a_night_whose_stages_are_not_worked_out_yet_has_none() -> None:
    early = copy.deepcopy(NIGHT)
    del early["sleep"]["stages"], early["sleep"]["metadata"]
    early["sleep"]["summary"] = {"minutesInSleepPeriod": "420"}
    parsed = parse("sleep", [early])
    (night,) = rows(parsed, "sleep")
    assert (night["processed"], night["asleep_minutes"], night["deep_minutes"]) == (None, None, None)
    assert rows(parsed, "sleep_stage") == []


@pytest.mark.parametrize(
    "stage",
    [
        {"startTime": "2026-11-20T12:00:00Z", "type": "LIGHT"},
        {"startTime": "2026-11-20T12:00:00Z", "endTime": "2026-11-20T11:00:00Z", "type": "LIGHT"},
        {"startTime": 5, "endTime": "2026-11-20T11:00:00Z", "type": "LIGHT"},
        "LIGHT",
    ],
)
def test_a_night_with_a_bad_stage_is_refused_alone(stage: Any) -> None:
    bad = copy.deepcopy(NIGHT)
    bad["sleep"]["stages"].append(stage)
    parsed = parse("sleep", [bad, NIGHT])
    assert refused(parsed) == [("wrong_type", "sleep.stages", "dataPoints[0]")]
    assert len(rows(parsed, "sleep")) == 1
    assert len(rows(parsed, "sleep_stage")) == 2


def test_a_session_without_a_name_is_known_by_its_start() -> None:
    listed = {"name": RUN["dataPointName"], **RUN}
    del listed["dataPointName"]
    nameless = {"exercise": RUN["exercise"]}
    runs = rows(parse("exercise", [RUN, listed, nameless]), "exercise")
    assert [run["id"] for run in runs] == ["run-1", "run-1", INTERVAL["startTime"]]
    assert runs[0]["active_duration_seconds"] == 1830.5
    assert (runs[0]["steps"], runs[0]["average_heart_rate_bpm"]) == (5021, 151)
    assert (runs[0]["distance_mm"], runs[0]["elevation_gain_mm"]) == (6500000, 42000)


def test_numbers_that_are_0_are_left_out_by_the_wire() -> None:
    assert rows(parse("floors", [of_day(floors={})]), "floors")[0]["floors"] == 0
    zones = rows(
        parse("active_zone_minutes", [of_day(activeZoneMinutes={"sumInCardioHeartZone": "34"})]),
        "active_zone_minutes",
    )
    assert zones == [
        {"day": dt.date(2026, 11, 20), "fat_burn_minutes": 0, "cardio_minutes": 34, "peak_minutes": 0}
    ]
    levels = [{"activityLevel": "VIGOROUS", "activeMinutesSum": "12"}, {"activityLevel": "LIGHT"}]
    minutes = rows(
        parse(
            "active_minutes",
            [
                of_day(activeMinutes={"activeMinutesRollupByActivityLevel": levels}),
                of_day(activeMinutes={}),
                of_day(
                    activeMinutes={
                        "activeMinutesRollupByActivityLevel": [
                            {"activityLevel": "LIGHT", "activeMinutesSum": None},
                            {"activityLevel": "MODERATE", "activeMinutesSum": "7"},
                        ]
                    }
                ),
            ],
        ),
        "active_minutes",
    )
    assert [(row["light_minutes"], row["moderate_minutes"], row["vigorous_minutes"]) for row in minutes] == [
        (0, 0, 12),
        (0, 0, 0),
        (0, 7, 0),
    ]
    assert rows(parse("steps", [{"steps": {"interval": INTERVAL}}]), "steps")[0]["steps"] == 0


def test_a_renamed_number_is_not_taken_for_0() -> None:
    parsed = parse("floors", [of_day(floors={"sum": "4"}), of_day(), of_day(floors=None)])
    assert refused(parsed) == [
        ("missing_field", "floors.countSum", f"rollupDataPoints[{place}]") for place in range(3)
    ]
    assert parsed.notes == ("floors: new field floors.sum",)


def test_a_date_has_to_be_whole() -> None:
    dates = [
        {"year": 2026, "month": 11, "day": 20},
        {"year": 2026, "month": 11},
        {"year": 2026, "month": 2, "day": 30},
        "2026-11-20",
    ]
    parsed = parse(
        "daily_resting_heart_rate",
        [{"dailyRestingHeartRate": {"date": date, "beatsPerMinute": "52"}} for date in dates],
    )
    assert [row["day"] for row in rows(parsed, "daily_resting_heart_rate")] == [dt.date(2026, 11, 20)]
    assert refused(parsed) == [
        ("wrong_type", "dailyRestingHeartRate.date", f"dataPoints[{place}]") for place in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("entity", "point", "path"),
    [
        ("heart_rate", {}, "heartRate.sampleTime.physicalTime"),
        ("heart_rate", {"heartRate": {"beatsPerMinute": "60"}}, "heartRate.sampleTime.physicalTime"),
        (
            "weight",
            {"weight": {"sampleTime": {"physicalTime": "2026-11-20T12:00:00Z"}}},
            "weight.weightGrams",
        ),
        ("sleep", {"dataPointName": "x", "sleep": {"type": "STAGES"}}, "sleep.interval.startTime"),
        ("exercise", {}, "dataPointName"),
    ],
)
def test_what_a_record_cannot_be_without(entity: str, point: Any, path: str) -> None:
    assert refused(parse(entity, [point])) == [("missing_field", path, "dataPoints[0]")]


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"dataPoints": {}}', b'{"points": []}'])
def test_a_body_of_another_outline_is_refused_whole(body: bytes) -> None:
    parsed = parse("steps", body)
    assert refused(parsed) == [("malformed_body", None, "$")]
    assert not parsed.tables


def test_an_empty_page_is_no_error() -> None:
    for body in (b"{}", b'{"nextPageToken": "x"}', b'{"dataPoints": []}'):
        parsed = parse("steps", body)
        assert (parsed.records_in, rows(parsed, "steps"), refused(parsed)) == (0, [], [])


def test_new_fields_are_noted_and_known_ones_are_not() -> None:
    point = copy.deepcopy(PULSE)
    assert parse("heart_rate", [point]).notes == ()
    point["heartRate"]["confidence"] = 3
    point["fresh"] = {}
    assert parse("heart_rate", [point]).notes == (
        "heart_rate: new field fresh",
        "heart_rate: new field heartRate.confidence",
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["interval", "type", "stages", "summary", "metadata", "updateTime"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), JSON) | JSON, max_size=5))
def test_whatever_stands_in_a_record_every_record_is_accounted_for(damage: list[Any]) -> None:
    points = [
        {"dataPointName": "x", "sleep": NIGHT["sleep"] | dict([what])} if isinstance(what, tuple) else what
        for what in damage
    ]
    parsed = parse("sleep", [NIGHT, *points])
    assert parsed.records_in == len(points) + 1
    assert rows(parsed, "sleep")[0]["id"] == "night-1"


# Fetching ------------------------------------------------------------------------------------------------


def client_of(url: str, token: str = "token", **options: Any) -> ApiClient:
    return ApiClient("google_health", url, lambda _force: token, interpret=PROVIDER.interpret, **options)


@pytest.fixture
def ada(sandbox: RunningSandbox) -> Iterator[ApiClient]:
    token = sandbox.app.state.apis["google_health"].oauth.access_token("ada")
    with client_of(f"{sandbox.url}/google_health", token) as client:
        yield client


def pages_of(client: ApiClient, name: str, window: Window) -> list[Page]:
    return list(google_health.fetch(client, PROVIDER.entity(name), window))


def all_rows(pages: list[Page], name: str) -> list[dict[str, Any]]:
    return [row for page in pages for row in rows(parse(page.entity, page.content), name)]


@pytest.mark.parametrize("entity", FETCHED, ids=lambda entity: entity.name)
def test_every_entity_is_fetched_and_read_without_loss_or_surprise(ada: ApiClient, entity: Any) -> None:
    start = dt.date(2024, 1, 1) if entity.name == "height" else DAY
    pages = list(google_health.fetch(ada, entity, Window(start, start + dt.timedelta(days=6))))
    for page in pages:
        parsed = parse(page.entity, page.content)
        assert (refused(parsed), parsed.notes) == ([], ())
    assert bool(all_rows(pages, entity.name)) == (entity.name != "core_body_temperature")


def test_a_window_is_of_whole_local_days(ada: ApiClient) -> None:
    # London's clock went back on 2026-10-25: that day has 25 hours.
    window = Window(dt.date(2026, 10, 25), dt.date(2026, 10, 25))
    for name in ("heart_rate", "steps"):
        local = [
            row["recorded_at"] + dt.timedelta(minutes=row["utc_offset_minutes"])
            for row in all_rows(pages_of(ada, name, window), name)
        ]
        assert {moment.date() for moment in local} == {window.start}
    offsets = {
        row["utc_offset_minutes"] for row in all_rows(pages_of(ada, "heart_rate", window), "heart_rate")
    }
    assert offsets == {0, 60}
    (night,) = all_rows(pages_of(ada, "sleep", window), "sleep")
    assert (night["utc_offset_minutes"], night["end_utc_offset_minutes"]) == (60, 0)
    for name in ("daily_resting_heart_rate", *ROLL_UPS):
        assert [row["day"] for row in all_rows(pages_of(ada, name, window), name)] == [window.start]


def test_pages_join_without_loss(ada: ApiClient) -> None:
    week = Window(DAY, DAY + dt.timedelta(days=6))
    pages = pages_of(ada, "heart_rate", week)
    assert len(pages) > 1
    found = [row["recorded_at"] for row in all_rows(pages, "heart_rate")]
    assert found == sorted(set(found), reverse=True)
    by_day = [
        row["recorded_at"]
        for day in week.split(1)
        for row in all_rows(pages_of(ada, "heart_rate", day), "heart_rate")
    ]
    assert sorted(by_day) == sorted(found)


def test_sums_of_the_intervals_are_those_of_the_truth(sandbox: RunningSandbox, ada: ApiClient) -> None:
    answer = httpx.get(
        f"{sandbox.url}/__truth/google_health/ada", params={"start": str(DAY), "end": str(DAY)}
    ).json()
    true = {value["metric_type"]: value["value"] for value in answer["values"]}
    day = Window(DAY, DAY)
    assert sum(row["steps"] for row in all_rows(pages_of(ada, "steps", day), "steps")) == true["steps"]
    distance = sum(row["distance_mm"] for row in all_rows(pages_of(ada, "distance", day), "distance"))
    assert distance / 1000 == pytest.approx(true["distance"], abs=1)
    (night,) = all_rows(pages_of(ada, "sleep", day), "sleep")
    assert 60 * night["asleep_minutes"] == pytest.approx(true["sleep_duration"], abs=30)


def test_who_it_is(sandbox: RunningSandbox, ada: ApiClient) -> None:
    account = PROVIDER.identify(ada)
    assert account.provider_user_id == sandbox.app.state.apis["google_health"].user_id("ada")
    assert account.profile["time_zone"] == "Europe/London"
    assert len(account.profile["legacy_user_id"]) == 6


Answer = Callable[[str, str, dict[str, Any]], tuple[int, Any]]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server that answers by (method, path, query or body) with a status and JSON or bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length", 0))
            asked: dict[str, Any] = (
                orjson.loads(self.rfile.read(length))
                if length
                else {name: values[0] for name, values in parse_qs(parts.query).items()}
            )
            status, body = answer(self.command, parts.path, asked)
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error(code: int, reason: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": "X", "details": [{"@type": "y"}, {"reason": reason}]}}


def test_an_empty_page_may_be_followed_by_others() -> None:
    def answer(_method: str, _path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"dataPoints": [PULSE]} if "pageToken" in asked else {"nextPageToken": "t"}

    with answering(answer) as url, client_of(url) as client:
        pages = pages_of(client, "heart_rate", Window(DAY, DAY))
    assert [len(all_rows([page], "heart_rate")) for page in pages] == [0, 1]


@pytest.mark.parametrize("snake", [(200, {}), (400, error(400, "INVALID_DATA_POINT_FILTER"))])
def test_days_not_found_in_snake_case_are_asked_for_in_camel_case(snake: tuple[int, Any]) -> None:
    point = {"dailyVo2Max": {"date": {"year": 2026, "month": 11, "day": 10}, "vo2Max": 44.5}}

    def answer(_method: str, _path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        return (200, {"dataPoints": [point]}) if "dailyVo2Max.date" in asked["filter"] else snake

    with answering(answer) as url, client_of(url) as client:
        found = all_rows(pages_of(client, "daily_vo2_max", Window(DAY, DAY)), "daily_vo2_max")
    assert [row["vo2_max_ml_per_kg_min"] for row in found] == [44.5]


def test_a_filter_that_is_refused_both_ways_is_an_error() -> None:
    with (
        answering(lambda *_: (400, error(400, "INVALID_ARGUMENT"))) as url,
        client_of(url) as client,
        pytest.raises(RequestRejectedError),
    ):
        pages_of(client, "daily_vo2_max", Window(DAY, DAY))


def test_a_rollup_asks_for_days_up_to_the_one_after_the_last() -> None:
    seen = []

    def answer(method: str, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        seen.append((method, path, asked))
        return 200, {"nextPageToken": "t"} if len(seen) == 1 else {}

    with answering(answer) as url, client_of(url) as client:
        pages_of(client, "total_calories", Window(dt.date(2026, 10, 31), dt.date(2026, 10, 31)))
    asked = {
        "range": {
            "start": {"date": {"year": 2026, "month": 10, "day": 31}},
            "end": {"date": {"year": 2026, "month": 11, "day": 1}},
        },
        "windowSizeDays": 1,
        "pageSize": 14,
    }
    path = "/v4/users/me/dataTypes/total-calories/dataPoints:dailyRollUp"
    assert seen == [("POST", path, asked), ("POST", path, asked | {"pageToken": "t"})]
    assert PROVIDER.entity("total_calories").max_window_days == 14


@pytest.mark.parametrize(
    "body", [b"no json", {"dataPoints": 3}, {"dataPoints": [], "nextPageToken": 7}, {"nextPageToken": "same"}]
)
def test_pages_that_cannot_be_followed_are_kept_and_told(body: Any) -> None:
    kept: list[bytes] = []
    with (
        answering(lambda *_: (200, body)) as url,
        client_of(url) as client,
        pytest.raises(MalformedResponseError),
    ):
        for page in google_health.fetch(client, PROVIDER.entity("steps"), Window(DAY, DAY)):
            kept.append(page.content)  # noqa: PERF401 - what came before the error counts
    assert kept[0] == (body if isinstance(body, bytes) else orjson.dumps(body))


@pytest.mark.parametrize(
    ("status", "reason", "expected", "words"),
    [
        (403, "ACCESS_TOKEN_SCOPE_INSUFFICIENT", PermissionMissingError, "permission"),
        (400, "ACCOUNT_NOT_LINKED", AuthorizationError, "link it"),
        (403, "RESOURCE_PERMISSION_DENIED", PermissionMissingError, "again"),
        (403, "SERVICE_DISABLED", RequestRejectedError, "not enabled"),
        (400, "INVALID_ARGUMENT", RequestRejectedError, "refused"),
    ],
)
def test_errors_say_what_to_do(status: int, reason: str, expected: type[Exception], words: str) -> None:
    with (
        answering(lambda *_: (status, error(status, reason))) as url,
        client_of(url) as client,
        pytest.raises(expected, match=words),
    ):
        pages_of(client, "steps", Window(DAY, DAY))


def test_a_used_up_quota_is_waited_out_without_a_word_from_the_vendor() -> None:
    waits: list[float] = []

    def answer(*_: Any) -> tuple[int, Any]:
        return (429, error(429, "RATE_LIMIT_EXCEEDED")) if len(waits) < 2 else (200, {})

    with answering(answer) as url:
        with client_of(url, sleep=waits.append) as client:
            assert len(pages_of(client, "steps", Window(DAY, DAY))) == 1
        assert len(waits) == 2
        del waits[:]
        with client_of(url, sleep=lambda _: None) as client, pytest.raises(RateLimitedError):
            pages_of(client, "steps", Window(DAY, DAY))


# Calls to us ---------------------------------------------------------------------------------------------

HOOK = PROVIDER.webhook
OURS = "Bearer our-own-value"


def request(headers: dict[str, str], body: bytes, method: str = "POST") -> WebhookRequest:
    named = {name.lower(): (value,) for name, value in headers.items()}
    return WebhookRequest(method, "/hook", {}, named, body, RECEIVED_AT)


@pytest.fixture(scope="module")
def keyset(running_sandbox: RunningSandbox) -> str:
    path = "/google_health/googlehealthapi/webhooks/webhooks_public_keyset.json"
    return httpx.get(f"{running_sandbox.url}{path}").raise_for_status().text


@pytest.fixture(scope="module")
def call(running_sandbox: RunningSandbox) -> Any:
    return running_sandbox.app.state.apis["google_health"].webhooks("ada", DAY, OURS)[0]


def test_a_signed_call_is_believed_with_or_without_our_own_header(call: Any, keyset: str) -> None:
    headers = dict(call.headers)
    assert HOOK.verify(request(headers, call.body), [keyset, OURS])
    del headers["Authorization"]
    assert HOOK.verify(request(headers, call.body), ["{}", "Bearer other", keyset])
    older = {"X-HEALTHAPI-SIGNATURE": headers["GOOGLE-HEALTH-API-SIGNATURE"]}
    assert HOOK.verify(request(older, call.body), [keyset])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_call_with_any_byte_changed_is_not_believed(call: Any, keyset: str, data: st.DataObject) -> None:
    name = "GOOGLE-HEALTH-API-SIGNATURE"
    blob = bytearray(base64.b64decode(call.headers[name]))
    body = bytearray(call.body)
    target = data.draw(st.sampled_from([blob, body]))
    place = data.draw(st.integers(0, len(target) - 1))
    target[place] ^= data.draw(st.integers(1, 255))
    headers = {name: base64.b64encode(bytes(blob)).decode()}
    assert not HOOK.verify(request(headers, bytes(body)), [keyset])


def test_no_signature_no_key_or_a_retired_key_prove_nothing(call: Any, keyset: str) -> None:
    name = "GOOGLE-HEALTH-API-SIGNATURE"
    signed = request(dict(call.headers), call.body)
    assert not HOOK.verify(request({"Authorization": OURS}, call.body), [keyset, OURS])
    assert not HOOK.verify(signed, [OURS])
    assert not HOOK.verify(signed, [])
    assert not HOOK.verify(signed, ["{broken", '{"key": 5}', '{"key": [{}]}'])
    for header in ("", "AQ==", "%%%", base64.b64encode(b"\x01abcd").decode()):
        assert not HOOK.verify(request({name: header}, call.body), [keyset])
    for change in ({"status": "DISABLED"}, {"outputPrefixType": "RAW"}):
        changed = orjson.loads(keyset)
        changed["key"][1].update(change)
        assert not HOOK.verify(signed, [orjson.dumps(changed).decode()])


def test_the_handshake_is_answered_by_our_own_header(keyset: str) -> None:
    body = b'{"type":"verification"}'
    secrets = [keyset, "Bearer old", OURS]
    assert HOOK.challenge(request({"Authorization": OURS}, body), secrets)[0] == 201
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": ""}, {"Authorization": keyset}):
        assert HOOK.challenge(request(headers, body), [*secrets, ""])[0] == 401
    assert HOOK.challenge(request({"Authorization": OURS}, b'{"data": {}}'), secrets) is None
    assert (HOOK.status, HOOK.refusal) == (204, 401)


def test_what_a_call_says(running_sandbox: RunningSandbox, call: Any) -> None:
    (event,) = HOOK.events(call.body)
    assert (event.event_type, event.kind, event.entity) == ("sleep.UPSERT", "changed", "sleep")
    assert event.provider_user_id == running_sandbox.app.state.apis["google_health"].user_id("ada")
    assert event.window is not None
    assert DAY - dt.timedelta(days=1) <= event.window.start <= event.window.end == DAY

    notice = orjson.loads(call.body)[0]
    assert HOOK.events(orjson.dumps(notice)) == (event,)
    notice["data"] |= {"operation": "DELETE", "intervals": []}
    other = copy.deepcopy(notice)
    other["data"]["dataType"] = "sedentary-period"
    gone, unread = HOOK.events(orjson.dumps([notice, other]))
    assert (gone.kind, gone.window) == ("deleted", None)
    assert (unread.kind, unread.entity) == ("other", None)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{}", b'{"data": {}}', b'{"type": "verification"}'])
def test_a_body_that_is_no_notification_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="notification"):
        HOOK.events(body)
