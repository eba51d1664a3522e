"""Google Health in the sandbox against the vendor's discovery document and its known quirks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from sandbox_client import NOW, REDIRECT
from vendor_spec import load_spec

from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

BASE = "/google_health"
TYPES = f"{BASE}/v4/users/me/dataTypes"
SCOPE = "https://www.googleapis.com/auth/googlehealth."
LISTED = {
    "heart-rate": "heart_rate.sample_time.civil_time",
    "heart-rate-variability": "heart_rate_variability.sample_time.physical_time",
    "oxygen-saturation": "oxygen_saturation.sample_time.civil_time",
    "weight": "weight.sample_time.civil_time",
    "body-fat": "body_fat.sample_time.civil_time",
    "daily-resting-heart-rate": "daily_resting_heart_rate.date",
    "daily-heart-rate-variability": "daily_heart_rate_variability.date",
    "daily-oxygen-saturation": "daily_oxygen_saturation.date",
    "daily-respiratory-rate": "daily_respiratory_rate.date",
    "daily-sleep-temperature-derivations": "daily_sleep_temperature_derivations.date",
    "daily-vo2-max": "daily_vo2_max.date",
    "steps": "steps.interval.civil_start_time",
    "distance": "distance.interval.start_time",
    "active-energy-burned": "active_energy_burned.interval.civil_start_time",
    "sleep": "sleep.interval.civil_end_time",
    "exercise": "exercise.interval.civil_start_time",
}
ROLLED_UP = (
    "steps",
    "distance",
    "active-energy-burned",
    "floors",
    "total-calories",
    "active-minutes",
    "active-zone-minutes",
)


def client_of(sandbox: RunningSandbox, handle: str) -> httpx.Client:
    token = sandbox.app.state.apis["google_health"].oauth.access_token(handle)
    return httpx.Client(base_url=sandbox.url, timeout=20, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def ada(sandbox: RunningSandbox) -> Iterator[httpx.Client]:
    with client_of(sandbox, "ada") as client:
        yield client


def between(kind: str, start: str, end: str) -> str:
    member = LISTED[kind]
    zone = "T00:00:00Z" if member.endswith(("physical_time", "interval.start_time")) else ""
    return f'{member} >= "{start}{zone}" AND {member} < "{end}{zone}"'


def points(
    client: httpx.Client, kind: str, start: str, end: str, method: str = "", **query: str
) -> list[Any]:
    found: list[Any] = []
    query["filter"] = between(kind, start, end)
    while True:
        answer = client.get(f"{TYPES}/{kind}/dataPoints{method}", params=query)
        assert answer.status_code == 200, answer.text
        found += answer.json().get("dataPoints", [])
        if "nextPageToken" not in answer.json():
            return found
        query["pageToken"] = answer.json()["nextPageToken"]


def day_object(day: dt.date) -> dict[str, Any]:
    return {"date": {"year": day.year, "month": day.month, "day": day.day}}


def roll_up(client: httpx.Client, kind: str, start: dt.date, end: dt.date, **rest: Any) -> httpx.Response:
    body = {"range": {"start": day_object(start), "end": day_object(end)}, **rest}
    return client.post(f"{TYPES}/{kind}/dataPoints:dailyRollUp", json=body)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return error["code"], error["status"], error["details"][0]["reason"]


# The vendor's description --------------------------------------------------------------------------------


def json_schema(discovery: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema of a Google discovery document as JSON schema; a field it does not know is an error."""
    formats = {
        "int64": r"^-?\d+$",
        "google-datetime": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$",
        "google-duration": r"^-?\d+(\.\d+)?s$",
    }

    def of(part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in part:
            return {"$ref": f"#/$defs/{part['$ref']}"}
        schema: dict[str, Any] = {} if part["type"] == "any" else {"type": part["type"]}
        if part.get("format") in formats and part["type"] == "string":
            schema["pattern"] = formats[part["format"]]
        if "enum" in part:
            schema["enum"] = part["enum"]
        if "items" in part:
            schema["items"] = of(part["items"])
        if "properties" in part:
            schema["properties"] = {name: of(each) for name, each in part["properties"].items()}
            schema["additionalProperties"] = False
            schema["required"] = [
                name
                for name, each in part["properties"].items()
                if each.get("description", "").startswith("Required.")
            ]
        elif "additionalProperties" in part:
            schema["additionalProperties"] = of(part["additionalProperties"])
        return schema

    return {"$ref": f"#/$defs/{name}", "$defs": {n: of(s) for n, s in discovery["schemas"].items()}}


@pytest.fixture(scope="module")
def discovery() -> dict[str, Any]:
    return load_spec("google-health.json")


def assert_fits(discovery: dict[str, Any], name: str, body: Any) -> None:
    validator = jsonschema.Draft202012Validator(json_schema(discovery, name))
    assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)][:5]


def test_every_answer_fits_the_vendors_description(
    sandbox: RunningSandbox, discovery: dict[str, Any]
) -> None:
    methods = discovery["resources"]["users"]["resources"]["dataTypes"]["resources"]["dataPoints"]["methods"]
    with client_of(sandbox, "ben") as client:
        for kind in LISTED:
            query = {"filter": between(kind, "2026-08-20", "2026-08-31"), "pageSize": "40"}
            for method, path in (("list", ""), ("reconcile", ":reconcile")):
                body = client.get(f"{TYPES}/{kind}/dataPoints{path}", params=query).json()
                assert body["dataPoints"], kind
                assert_fits(discovery, methods[method]["response"]["$ref"], body)
        for kind in ROLLED_UP:
            body = roll_up(client, kind, dt.date(2026, 8, 20), dt.date(2026, 8, 31)).json()
            assert len(body["rollupDataPoints"]) == 11
            assert_fits(discovery, methods["dailyRollUp"]["response"]["$ref"], body)
        assert_fits(discovery, "Identity", client.get(f"{BASE}/v4/users/me/identity").json())
        assert_fits(discovery, "Settings", client.get(f"{BASE}/v4/users/me/settings").json())


# Reading -------------------------------------------------------------------------------------------------


def test_newest_comes_first_and_no_page_is_larger_than_allowed(large_pages: RunningSandbox) -> None:
    with client_of(large_pages, "ada") as client:
        week = ("steps", "2026-11-08", "2026-11-12")
        whole = points(client, *week, pageSize="99999")
        starts = [point["steps"]["interval"]["startTime"] for point in whole]
        assert starts == sorted(starts, reverse=True)
        assert points(client, *week, pageSize="77") == whole
        first = client.get(
            f"{TYPES}/steps/dataPoints", params={"filter": between(*week), "pageSize": "99999"}
        )
        assert len(first.json()["dataPoints"]) == len(whole) > 500
        sleeps = {"filter": between("sleep", "2026-08-01", "2026-11-01"), "pageSize": "500"}
        assert len(client.get(f"{TYPES}/sleep/dataPoints", params=sleeps).json()["dataPoints"]) == 25


@pytest.fixture(scope="module")
def large_pages() -> Iterator[RunningSandbox]:
    """With pages as large as the vendor's."""
    with run_in_thread(now=lambda: NOW, page_size=20_000) as running:
        yield running


def test_a_page_token_is_good_for_its_own_request_alone(ada: httpx.Client) -> None:
    query = {"filter": between("steps", "2026-11-08", "2026-11-12"), "pageSize": "5"}
    token = ada.get(f"{TYPES}/steps/dataPoints", params=query).json()["nextPageToken"]
    other = {"filter": between("steps", "2026-11-07", "2026-11-12"), "pageToken": token}
    invalid = (400, "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")
    assert refusal(ada.get(f"{TYPES}/steps/dataPoints", params=other)) == invalid
    assert refusal(ada.get(f"{TYPES}/steps/dataPoints", params=query | {"pageToken": "zzz"})) == invalid


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("sleep", 'sleep.interval.civil_start_time >= "2026-11-01"'),
        ("exercise", 'exercise.interval.start_time >= "2026-11-01T00:00:00Z"'),
        ("daily-vo2-max", 'dailyVo2Max.date >= "2026-11-01"'),
        ("daily-vo2-max", 'daily_vo2_max.date >= "2026-11-01T00:00:00"'),
        ("steps", 'distance.interval.civil_start_time >= "2026-11-01"'),
        ("steps", 'steps.interval.civil_start_time > "2026-11-01"'),
        ("steps", 'steps.interval.civil_start_time >= "2026-11-01T00:00:00Z"'),
        ("steps", 'steps.interval.start_time >= "2026-11-01"'),
        ("heart-rate", "heart_rate.sample_time.civil_time >= 2026-11-01"),
    ],
)
def test_filters_the_vendor_does_not_know_are_refused(ada: httpx.Client, kind: str, text: str) -> None:
    code, status, reason = refusal(ada.get(f"{TYPES}/{kind}/dataPoints", params={"filter": text}))
    assert (code, status) == (400, "INVALID_ARGUMENT")
    assert reason.startswith("INVALID_DATA_POINT_FILTER")


def test_civil_and_physical_filters_differ_by_the_offset(sandbox: RunningSandbox) -> None:
    with client_of(sandbox, "eli") as client:
        civil = points(client, "steps", "2026-11-10", "2026-11-11")
        member = "steps.interval.start_time"
        same = f'{member} >= "2026-11-09T18:30:00Z" AND {member} < "2026-11-10T18:30:00Z"'
        answer = client.get(f"{TYPES}/steps/dataPoints", params={"filter": same, "pageSize": "10000"})
        assert answer.json()["dataPoints"] == civil
        assert {point["steps"]["interval"]["startUtcOffset"] for point in civil} == {"19800s"}


def test_a_merged_stream_names_no_source(ada: httpx.Client) -> None:
    listed = points(ada, "sleep", "2026-11-08", "2026-11-12")
    merged = points(ada, "sleep", "2026-11-08", "2026-11-12", ":reconcile")
    assert [point["sleep"] for point in listed] == [point["sleep"] for point in merged]
    assert [point["name"] for point in listed] == [point["dataPointName"] for point in merged]
    assert all("dataSource" in point for point in listed)
    assert not any("dataSource" in point for point in merged)


def test_rollups_are_the_sums_of_the_points(ada: httpx.Client) -> None:
    first, after = dt.date(2026, 10, 24), dt.date(2026, 10, 27)
    days = roll_up(ada, "steps", first, after).json()["rollupDataPoints"]
    for number, day in enumerate(days):
        date = first + dt.timedelta(days=number)
        assert day["civilStartTime"] == day_object(date) | {"time": {}}
        found = points(ada, "steps", str(date), str(date + dt.timedelta(days=1)))
        assert int(day["steps"]["countSum"]) == sum(int(point["steps"]["count"]) for point in found)


def test_rollups_have_their_limits_and_pages(ada: httpx.Client) -> None:
    first = dt.date(2026, 9, 1)
    for kind, longest in (("floors", 90), ("total-calories", 14)):
        too_long = roll_up(ada, kind, first - dt.timedelta(days=longest + 1), first)
        assert refusal(too_long) == (400, "INVALID_ARGUMENT", "INVALID_ROLLUP_RANGE")
        whole = roll_up(ada, kind, first, first + dt.timedelta(days=12)).json()["rollupDataPoints"]
        page = roll_up(ada, kind, first, first + dt.timedelta(days=12), pageSize=7).json()
        token = page["nextPageToken"]
        rest = roll_up(ada, kind, first, first + dt.timedelta(days=12), pageSize=7, pageToken=token).json()
        assert page["rollupDataPoints"] + rest["rollupDataPoints"] == whole
    backwards = roll_up(ada, "floors", first, first)
    assert refusal(backwards) == (400, "INVALID_ARGUMENT", "INVALID_ROLLUP_RANGE")
    unsupported = ada.get(f"{TYPES}/floors/dataPoints")
    assert refusal(unsupported) == (400, "INVALID_ARGUMENT", "UNSUPPORTED_METHOD")


def test_a_night_is_told_before_its_stages_are_worked_out(own_sandbox: RunningSandbox) -> None:
    with client_of(own_sandbox, "ada") as client:
        (night,) = points(client, "sleep", "2026-11-10", "2026-11-11")
        woke = dt.datetime.fromisoformat(night["sleep"]["interval"]["endTime"])
        assert night["sleep"]["metadata"]["processed"] is True

        def at(minutes: int) -> list[Any]:
            instant = (woke + dt.timedelta(minutes=minutes)).isoformat()
            httpx.put(f"{own_sandbox.url}/__now", json={"now": instant}).raise_for_status()
            return points(client, "sleep", "2026-11-10", "2026-11-11")

        assert at(9) == []
        (early,) = at(11)
        assert early["name"] == night["name"]
        assert "stages" not in early["sleep"]
        assert "processed" not in early["sleep"]["metadata"]
        assert points(client, "daily-resting-heart-rate", "2026-11-10", "2026-11-11") == []
        assert at(61) == [night]
        assert len(points(client, "daily-resting-heart-rate", "2026-11-10", "2026-11-11")) == 1


def test_a_night_that_is_edited_keeps_its_name_and_a_deleted_one_is_gone(own_sandbox: RunningSandbox) -> None:
    with client_of(own_sandbox, "ada") as client:

        def revise(kind: str) -> httpx.Response:
            body = {"provider": "google_health", "handle": "ada", "day": "2026-11-10", "kind": kind}
            return httpx.post(f"{own_sandbox.url}/__revise", json=body)

        (before,) = points(client, "sleep", "2026-11-10", "2026-11-11")
        assert revise("edit").json()["revised"] == [before["name"].rsplit("/", 1)[1]]
        (after,) = points(client, "sleep", "2026-11-10", "2026-11-11")
        assert after["name"] == before["name"]
        assert after["sleep"]["interval"]["startTime"] > before["sleep"]["interval"]["startTime"]
        assert after["sleep"]["metadata"]["manuallyEdited"] is True
        assert after["sleep"]["updateTime"] > before["sleep"]["updateTime"]
        revise("delete").raise_for_status()
        assert points(client, "sleep", "2026-11-10", "2026-11-11") == []
        assert revise("delete").status_code == 404


# Errors and OAuth ----------------------------------------------------------------------------------------


def test_errors_are_googles(own_sandbox: RunningSandbox) -> None:
    with client_of(own_sandbox, "ada") as client:
        path = f"{TYPES}/steps/dataPoints"
        by_number = client.get(path.replace("users/me", "users/123"))
        assert refusal(by_number) == (400, "INVALID_ARGUMENT", "INVALID_USER")
        assert refusal(client.get(f"{TYPES}/mood/dataPoints"))[2] == "INVALID_DATA_TYPE"
        fault = {"provider": "google_health", "kind": "rate_limit", "count": 1}
        httpx.post(f"{own_sandbox.url}/__faults", json=fault).raise_for_status()
        limited = client.get(path)
        assert refusal(limited) == (429, "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED")
        assert "retry-after" not in limited.headers
        client.headers["Authorization"] = "Bearer nonsense"
        assert refusal(client.get(path))[:2] == (401, "UNAUTHENTICATED")


def grant(sandbox: RunningSandbox, scope: str, **extra: str) -> dict[str, Any]:
    client = {"client_id": "sandbox", "client_secret": "sandbox-secret", "redirect_uri": REDIRECT}
    asked = {"client_id": "sandbox", "redirect_uri": REDIRECT, "response_type": "code", "scope": scope}
    answer = httpx.get(
        f"{sandbox.url}{BASE}/o/oauth2/v2/auth", params={**asked, "login_hint": "ada", **extra}
    )
    code = httpx.URL(answer.headers["location"]).params["code"]
    form = client | {"grant_type": "authorization_code", "code": code}
    granted: dict[str, Any] = httpx.post(f"{sandbox.url}{BASE}/token", data=form).raise_for_status().json()
    return granted


def test_a_refresh_token_comes_once_and_only_for_offline_access(sandbox: RunningSandbox) -> None:
    scope = f"{SCOPE}sleep.readonly"
    assert "refresh_token" not in grant(sandbox, scope)
    granted = grant(sandbox, scope, access_type="offline", prompt="consent")
    assert granted["expires_in"] == 3599
    form = {
        "client_id": "sandbox",
        "client_secret": "sandbox-secret",
        "grant_type": "refresh_token",
        "refresh_token": granted["refresh_token"],
    }
    for _ in range(2):  # it is not used up
        renewed = httpx.post(f"{sandbox.url}{BASE}/token", data=form).raise_for_status().json()
        assert "refresh_token" not in renewed
        assert renewed["access_token"] != granted["access_token"]


def test_each_data_type_needs_its_scope(sandbox: RunningSandbox) -> None:
    token = grant(sandbox, f"{SCOPE}sleep.readonly")["access_token"]
    with httpx.Client(base_url=sandbox.url, headers={"Authorization": f"Bearer {token}"}) as client:
        assert client.get(f"{TYPES}/sleep/dataPoints").status_code == 200
        assert client.get(f"{BASE}/v4/users/me/identity").status_code == 200
        lacking = (403, "PERMISSION_DENIED", "ACCESS_TOKEN_SCOPE_INSUFFICIENT")
        assert refusal(client.get(f"{TYPES}/steps/dataPoints")) == lacking
        assert refusal(client.get(f"{BASE}/v4/users/me/settings")) == lacking
