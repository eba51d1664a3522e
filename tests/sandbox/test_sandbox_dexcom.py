"""The Dexcom API of the sandbox against its description, its rules and what people really did."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sandbox_client import NOW, REDIRECT
from vendor_spec import assert_response_fits, load_spec

from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.sandbox.truth import truth

SELF = "/v3/users/self"
SERIES = ("egvs", "events", "calibrations", "alerts")
MONTH = {"startDate": "2026-10-23T00:00:00", "endDate": "2026-11-21T12:00:00"}


@contextmanager
def as_(running: RunningSandbox, handle: str) -> Iterator[httpx.Client]:
    token = running.app.state.apis["dexcom"].oauth.access_token(handle)
    with httpx.Client(
        base_url=f"{running.url}/dexcom", headers={"Authorization": f"Bearer {token}"}, timeout=20
    ) as client:
        yield client


@pytest.fixture
def dana(sandbox: RunningSandbox) -> Iterator[httpx.Client]:
    with as_(sandbox, "dana") as client:
        yield client


def records(client: httpx.Client, kind: str, **window: str) -> list[dict[str, Any]]:
    answer = client.get(f"{SELF}/{kind}", params=window or MONTH)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["records"]
    return found


def at(record: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(record["systemTime"])


def test_every_answer_fits_the_description(dana: httpx.Client) -> None:
    spec = load_spec("dexcom.yaml")
    for kind in (*SERIES, "devices", "dataRange"):
        answer = dana.get(f"{SELF}/{kind}", params=MONTH if kind in SERIES else {})
        assert_response_fits(spec, f"{SELF}/{kind}", "GET", answer.status_code, answer.json())
        if kind != "dataRange":
            assert answer.json()["records"], kind


def test_who_wears_no_sensor_has_no_records(sandbox: RunningSandbox) -> None:
    with as_(sandbox, "ben") as ben:
        assert [records(ben, kind) for kind in (*SERIES, "devices")] == [[]] * 5
        body = ben.get(f"{SELF}/dataRange").json()
        assert (body["egvs"], body["events"], body["calibrations"]) == (None, None, None)


def test_values_are_those_of_the_truth(dana: httpx.Client) -> None:
    day = dt.date(2026, 11, 12)
    (true,) = truth(person("dana"), day, day)
    # Chicago's day.
    seen = records(dana, "egvs", startDate="2026-11-12T06:00:00", endDate="2026-11-13T05:59:59")
    values = [record["value"] for record in seen]
    assert len(values) == true["glucose_readings"]
    assert round(sum(values) / len(values), 2) == true["glucose_mean_mg_dl"]
    assert (min(values), max(values)) == (true["glucose_min_mg_dl"], true["glucose_max_mg_dl"])


def test_beyond_the_range_are_39_and_401_with_their_words(dana: httpx.Client) -> None:
    low = records(dana, "egvs", startDate="2025-10-28T00:00:00", endDate="2025-11-02T00:00:00")
    said = {(record["value"], record["status"]) for record in low if record["status"]}
    assert said == {(39, "low"), (401, "high")}


def test_records_are_newest_first_of_the_window_with_both_ends(dana: httpx.Client) -> None:
    seen = records(dana, "egvs")
    times = [record["systemTime"] for record in seen]
    assert times == sorted(times, reverse=True)
    assert len({record["recordId"] for record in seen}) == len(seen)
    ends = {"startDate": times[20][:19], "endDate": times[10][:19]}
    assert [record["systemTime"] for record in records(dana, "egvs", **ends)] == times[10:21]


def test_a_phone_writes_the_offset_and_a_receiver_does_not(dana: httpx.Client) -> None:
    by_device: dict[str, list[dict[str, Any]]] = {}
    for record in records(dana, "egvs"):
        by_device.setdefault(record["displayDevice"], []).append(record)
    assert set(by_device) == {"iOS", "receiver"}
    for record in by_device["iOS"]:
        assert dt.datetime.fromisoformat(record["displayTime"]) == at(record)
    assert all(dt.datetime.fromisoformat(r["displayTime"]).tzinfo is None for r in by_device["receiver"])


@pytest.mark.parametrize(("handle", "hours"), [("dana", 1), ("ada", 3)])
def test_nothing_is_told_before_its_delay(sandbox: RunningSandbox, handle: str, hours: int) -> None:
    with as_(sandbox, handle) as client:
        newest = at(records(client, "egvs")[0])
    late = NOW - newest
    assert dt.timedelta(hours=hours) <= late < dt.timedelta(hours=hours, minutes=30)


def test_a_receivers_day_comes_when_it_is_read_out(own_sandbox: RunningSandbox) -> None:
    day = {"startDate": "2026-11-14T10:00:00", "endDate": "2026-11-15T10:00:00"}
    with as_(own_sandbox, "dana") as client:
        seen = records(client, "egvs", **day)
        assert {record["displayDevice"] for record in seen} == {"receiver"}
        own_sandbox.app.state.sandbox.fix_time(dt.datetime(2026, 11, 15, 10, 30, tzinfo=dt.UTC))
        assert records(client, "egvs", **day) == []


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"startDate": "2026-11-01T00:00:00"},
        {"startDate": "2026-11-01T00:00:00Z", "endDate": "2026-11-02T00:00:00Z"},
        {"startDate": "2026-11-01", "endDate": "2026-11-02"},
        {"startDate": "2026-11-02T00:00:00", "endDate": "2026-11-01T00:00:00"},
        {"startDate": "2026-10-01T00:00:00", "endDate": "2026-10-31T00:00:01"},
    ],
)
def test_windows_that_are_none_or_too_long_are_refused(dana: httpx.Client, window: dict[str, str]) -> None:
    assert dana.get(f"{SELF}/egvs", params=window).status_code == 400


def test_what_a_person_changes_keeps_its_id(own_sandbox: RunningSandbox) -> None:
    with as_(own_sandbox, "dana") as client:
        before = {record["recordId"]: record for record in records(client, "events")}
        for day, kind, status in (("2026-11-12", "edit", "updated"), ("2026-11-10", "delete", "deleted")):
            asked = {"provider": "dexcom", "handle": "dana", "day": day, "kind": kind}
            (changed,) = httpx.post(f"{own_sandbox.url}/__revise", json=asked).json()["revised"]
            now = {record["recordId"]: record for record in records(client, "events")}
            assert set(now) == set(before)
            assert now[changed]["eventStatus"] == status
            assert (now[changed]["value"] != before[changed]["value"]) == (kind == "edit")
    asked = {"provider": "dexcom", "handle": "ben", "day": "2026-11-12", "kind": "edit"}
    assert httpx.post(f"{own_sandbox.url}/__revise", json=asked).status_code == 404


def test_tokens_live_two_hours_and_a_refresh_token_is_good_once(sandbox: RunningSandbox) -> None:
    client_of = {"client_id": "sandbox", "client_secret": "sandbox-secret"}
    with httpx.Client(base_url=f"{sandbox.url}/dexcom") as client:
        asked = {
            "client_id": "sandbox",
            "redirect_uri": REDIRECT,
            "response_type": "code",
            "scope": "offline_access",
            "login_hint": "dana",
        }
        sent = client.get("/v2/oauth2/login", params=asked).headers["location"]
        form = {
            **client_of,
            "grant_type": "authorization_code",
            "code": httpx.URL(sent).params["code"],
            "redirect_uri": REDIRECT,
        }
        first = client.post("/v2/oauth2/token", data=form).json()
        assert first["expires_in"] == 7200
        renew = {**client_of, "grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        second = client.post("/v2/oauth2/token", data=renew).json()
        assert second["refresh_token"] != first["refresh_token"]
        again = client.post("/v2/oauth2/token", data=renew)
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")


def test_limits_and_bad_tokens(sandbox: RunningSandbox) -> None:
    api = sandbox.app.state.apis["dexcom"]
    limited = api.rate_limited(60)
    assert (limited.status_code, "retry-after" in limited.headers) == (429, False)
    answer = httpx.get(f"{sandbox.url}/dexcom{SELF}/devices", headers={"Authorization": "Bearer none"})
    assert answer.status_code == 401
