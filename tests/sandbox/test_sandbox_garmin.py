"""Garmin in the sandbox: bodies like the known ones, pulls by upload, growth, permissions, backfill, webhooks."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sandbox_client import NOW, shared_folder
from vendor_spec import load_spec

from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.routers.garmin import API
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.sandbox.truth import truth

REST = "/garmin/wellness-api/rest"
DAY = 86_400
PATHS = {"pulseox": "pulseOx", "allDayRespiration": "respiration"}
KINDS = (
    *("dailies", "epochs", "sleeps", "stressDetails", "allDayRespiration", "hrv", "pulseox", "skinTemp"),
    *("userMetrics", "bodyComps", "bloodPressures", "healthSnapshot", "activities", "activityDetails"),
)

Open = Callable[..., httpx.Client]


def midnight(text: str) -> int:
    return int(dt.datetime.fromisoformat(f"{text}T00:00:00Z").timestamp())


def authorize(client: httpx.Client, handle: str, **asked: str) -> httpx.Response:
    query = {
        "client_id": "sandbox",
        "redirect_uri": "http://localhost/back",
        "response_type": "code",
        "login_hint": handle,
        "state": "s",
        "code_challenge": base64.urlsafe_b64encode(hashlib.sha256(b"verifier").digest()).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    return client.get("/garmin/oauth2Confirm", params={**query, **asked})


def token(client: httpx.Client, **form: str) -> httpx.Response:
    known = {
        "client_id": "sandbox",
        "client_secret": "sandbox-secret",
        "redirect_uri": "http://localhost/back",
    }
    return client.post("/garmin/di-oauth2-service/oauth/token", data=known | form)


def redeem(client: httpx.Client, handle: str, verifier: str = "verifier", **asked: str) -> httpx.Response:
    code = httpx.URL(authorize(client, handle, **asked).headers["location"]).params["code"]
    return token(client, grant_type="authorization_code", code=code, code_verifier=verifier)


@pytest.fixture
def connected() -> Iterator[Open]:
    """A client with a person's token; `scope` are the permissions they switched on."""
    clients: list[httpx.Client] = []

    def start(running: RunningSandbox, handle: str, **asked: str) -> httpx.Client:
        client = httpx.Client(base_url=running.url, timeout=20)
        clients.append(client)
        client.headers["Authorization"] = f"Bearer {redeem(client, handle, **asked).json()['access_token']}"
        return client

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def ada(sandbox: RunningSandbox, connected: Open) -> httpx.Client:
    return connected(sandbox, "ada")


def pull(client: httpx.Client, kind: str, start: int, end: int, **more: str) -> httpx.Response:
    window = {"uploadStartTimeInSeconds": start, "uploadEndTimeInSeconds": end}
    return client.get(f"{REST}/{PATHS.get(kind, kind)}", params={**window, **more})


def pulled(client: httpx.Client, kind: str, first: str, last: str) -> list[dict[str, Any]]:
    """All of the days of upload from `first` to `last`, both included."""
    found: list[dict[str, Any]] = []
    for start in range(midnight(first), midnight(last) + DAY, DAY):
        answer = pull(client, kind, start, start + DAY)
        assert answer.status_code == 200, answer.text
        found += answer.json()
    return found


def api_of(running: RunningSandbox) -> API:
    api: API = running.app.state.apis["garmin"]
    return api


# Bodies --------------------------------------------------------------------------------------------------


def test_every_kind_looks_like_the_known_bodies(ada: httpx.Client) -> None:
    known: dict[str, dict[str, Any]] = {}
    for body in load_spec("garmin.json")["placeholder_push_bodies"].values():
        known |= {key: records[0] for key, records in body.items()}
    recorded = shared_folder() / "data" / "garmin_health_push"
    for path in recorded.glob("*.json"):
        for key, records in json.loads(path.read_text()).items():
            for record in records:
                known[key] = {**known.get(key, {}), **record}
    optional = {
        "userId",
        "userAccessToken",
        "averageStresslevel",
        "sleepScores",
        "averagePaceInMinutesPerKilometer",
    }
    left_out = {"consumedCalories", "stressQualifier", "netKilocaloriesGoal", "source"}
    for kind in KINDS:
        found = pulled(ada, kind, "2026-10-28", "2026-11-06")
        assert found, kind
        ours: dict[str, Any] = {}
        for record in found:
            ours |= record
        assert "userId" not in ours
        for name, value in known.get(kind, {}).items():
            if name in optional | left_out:
                continue
            assert name in ours, (kind, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            assert isinstance(ours[name], int | float) if number else type(ours[name]) is type(value), (
                kind,
                name,
            )


@pytest.mark.parametrize("handle", ["ada", "ben"])
def test_numbers_are_those_of_the_truth(sandbox: RunningSandbox, connected: Open, handle: str) -> None:
    client = connected(sandbox, handle)
    start, end = dt.date(2026, 10, 1), dt.date(2026, 10, 12)
    true = {day["date"]: day for day in truth(person(handle), start, end)}
    nights = {n["calendarDate"]: n for n in pulled(client, "sleeps", "2026-10-01", "2026-10-15")}
    dailies = {d["calendarDate"]: d for d in pulled(client, "dailies", "2026-10-01", "2026-10-15")}
    worn = [date for date, day in true.items() if day["night_worn"]]
    assert len(worn) > 7
    for date in worn:
        night, day = nights[date], true[date]
        assert night["validation"] == "AUTO_FINAL"
        assert night["durationInSeconds"] == day["time_in_bed_seconds"]
        assert night["deepSleepDurationInSeconds"] == day["deep_sleep_seconds"]
        assert night["remSleepInSeconds"] == day["rem_sleep_seconds"]
        assert dailies[date]["restingHeartRateInBeatsPerMinute"] == day["resting_heart_rate"]
        spans = [span for level in night["sleepLevelsMap"].values() for span in level]
        assert (
            sum(s["endTimeInSeconds"] - s["startTimeInSeconds"] for s in spans) == night["durationInSeconds"]
        )
    # From midnight to midnight, and from 04:00 to 04:00: over many days as much.
    whole = [dailies[date] for date in true]
    assert {daily["durationInSeconds"] for daily in whole} == {DAY}
    walked, meant = (
        sum(column)
        for column in zip(
            *((d["steps"], true[d["calendarDate"]]["steps_recorded"]) for d in whole), strict=True
        )
    )
    assert walked == pytest.approx(meant, rel=0.01)


def test_epochs_add_up_to_the_day(ada: httpx.Client) -> None:
    (daily,) = [
        d
        for d in pulled(ada, "dailies", "2026-11-03", "2026-11-05")
        if d["calendarDate"] == "2026-11-03" and d["durationInSeconds"] == DAY
    ]
    newest: dict[tuple[int, str], dict[str, Any]] = {}
    for epoch in pulled(ada, "epochs", "2026-11-02", "2026-11-05"):
        newest[epoch["startTimeInSeconds"], epoch["activityType"]] = epoch
    start = daily["startTimeInSeconds"]
    of_day = [epoch for (at, _), epoch in newest.items() if start <= at < start + DAY]
    assert {epoch["durationInSeconds"] for epoch in of_day} == {900}
    assert sum(epoch["steps"] for epoch in of_day) == daily["steps"]
    assert sum(epoch["activeKilocalories"] for epoch in of_day) == pytest.approx(
        daily["activeKilocalories"], abs=1
    )


def test_states_are_there_beside_numbers(ada: httpx.Client) -> None:
    days = pulled(ada, "stressDetails", "2026-10-20", "2026-11-02")
    levels = {level for day in days for level in day["timeOffsetStressLevelValues"].values()}
    assert {-1, -2} <= levels
    assert max(levels) <= 100 and 0 not in levels


# Growth --------------------------------------------------------------------------------------------------


def test_what_was_under_way_is_uploaded_again_under_its_old_id(sandbox: RunningSandbox) -> None:
    summaries = api_of(sandbox).summaries["ada"]
    (morning, _), (evening, before) = summaries.syncs(midnight("2026-11-10"), midnight("2026-11-11"))
    assert before == morning
    first, second = (
        summaries.kinds()["epochs"](*pair) for pair in ((before - DAY, morning), (morning, evening))
    )
    cut = max(epoch["startTimeInSeconds"] for epoch in first)
    short = [epoch for epoch in first if epoch["startTimeInSeconds"] == cut]
    assert all(epoch["durationInSeconds"] < 900 for epoch in short)
    again = [epoch for epoch in second if epoch["startTimeInSeconds"] == cut]
    assert {epoch["durationInSeconds"] for epoch in again} == {900}
    assert {epoch["summaryId"] for epoch in short} & {epoch["summaryId"] for epoch in again}
    (tentative,) = summaries.uploaded("sleeps", morning, morning + 1)
    (final,) = summaries.uploaded("sleeps", evening, evening + 1)
    assert (tentative["validation"], final["validation"]) == ("AUTO_TENTATIVE", "AUTO_FINAL")
    assert tentative["summaryId"] == final["summaryId"]
    assert tentative["remSleepInSeconds"] == 0 < final["remSleepInSeconds"]


def test_nothing_is_later_than_now(ada: httpx.Client) -> None:
    today = NOW.date().isoformat()
    dailies = pulled(ada, "dailies", today, today)
    assert dailies
    assert all(d["startTimeInSeconds"] + d["durationInSeconds"] <= NOW.timestamp() for d in dailies)
    assert pull(ada, "dailies", int(NOW.timestamp()), int(NOW.timestamp()) + DAY).json() == []


def test_an_edited_night_is_uploaded_at_once(own_sandbox: RunningSandbox, connected: Open) -> None:
    client = connected(own_sandbox, "ada")
    (before,) = [
        n for n in pulled(client, "sleeps", "2026-11-10", "2026-11-11") if n["calendarDate"] == "2026-11-10"
    ][-1:]
    order = {"provider": "garmin", "handle": "ada", "day": "2026-11-10"}
    answer = httpx.post(f"{own_sandbox.url}/__revise", json={**order, "kind": "edit"})
    assert answer.json()["revised"] == [before["summaryId"]]
    now = int(NOW.timestamp())
    httpx.put(f"{own_sandbox.url}/__now", json={"now": (NOW + dt.timedelta(minutes=1)).isoformat()})
    (after,) = [
        n for n in pull(client, "sleeps", now, now + 60).json() if n["summaryId"] == before["summaryId"]
    ]
    assert after["validation"] == "AUTO_MANUAL"
    assert after["startTimeInSeconds"] == before["startTimeInSeconds"] + 1500
    rest = [
        v
        for v in api_of(own_sandbox).truth("ada", dt.date(2026, 11, 10), dt.date(2026, 11, 10))
        if v.metric_type == "time_in_bed"
    ]
    assert [value.value for value in rest] == [after["durationInSeconds"]]
    assert httpx.post(f"{own_sandbox.url}/__revise", json={**order, "kind": "delete"}).status_code == 404


# Consent -------------------------------------------------------------------------------------------------


def test_pkce_is_demanded_and_checked(sandbox: RunningSandbox) -> None:
    with httpx.Client(base_url=sandbox.url) as client:
        back = authorize(client, "ada", code_challenge="").headers["location"]
        assert httpx.URL(back).params["error"] == "invalid_request"
        assert redeem(client, "ada", verifier="another").status_code == 400
        answer = redeem(client, "ada").json()
        assert "scope" not in answer and answer["expires_in"] == DAY
        renewed = token(client, grant_type="refresh_token", refresh_token=answer["refresh_token"]).json()
        assert renewed["refresh_token"] != answer["refresh_token"]
        spent = token(client, grant_type="refresh_token", refresh_token=answer["refresh_token"])
        assert (spent.status_code, spent.json()["error"]) == (400, "invalid_grant")


def test_permissions_are_told_and_kept(own_sandbox: RunningSandbox, connected: Open) -> None:
    client = connected(own_sandbox, "ben", scope="HEALTH_EXPORT")
    user = "/garmin/partner-gateway/rest/user"
    assert client.get(f"{user}/permissions").json() == ["HEALTH_EXPORT"]
    start = midnight("2026-11-10")
    assert pull(client, "dailies", start, start + DAY).status_code == 200
    refused = pull(client, "activities", start, start + DAY)
    assert (refused.status_code, refused.json()["errorMessage"]) == (
        412,
        "User has not granted ACTIVITY_EXPORT",
    )
    assert client.delete(f"{user}/registration").status_code == 204
    gone = client.get(f"{user}/id")
    assert gone.status_code == 401 and "revoked" in gone.json()["errorMessage"]


@pytest.mark.parametrize(
    ("window", "status", "message"),
    [
        ({}, 400, "Missing time range"),
        ({"uploadStartTimeInSeconds": "x", "uploadEndTimeInSeconds": "1"}, 400, "not numbers"),
        (
            {"uploadStartTimeInSeconds": "1795000000", "uploadEndTimeInSeconds": "1794999999"},
            400,
            "Invalid time range",
        ),
        (
            {"uploadStartTimeInSeconds": "1795000000", "uploadEndTimeInSeconds": "1795086401"},
            400,
            "exceeds 86400",
        ),
        (
            {
                "uploadStartTimeInSeconds": "1795000000",
                "uploadEndTimeInSeconds": "1795086400",
                "token": "forged",
            },
            400,
            "InvalidPullToken",
        ),
    ],
)
def test_bad_pulls_are_refused(ada: httpx.Client, window: dict[str, str], status: int, message: str) -> None:
    answer = ada.get(f"{REST}/dailies", params=window)
    assert answer.status_code == status
    assert message in answer.json()["errorMessage"]


def test_unknown_kinds_strangers_and_limits(ada: httpx.Client, sandbox: RunningSandbox) -> None:
    start = midnight("2026-11-10")
    assert ada.get(f"{REST}/pulseox", params={"uploadStartTimeInSeconds": start}).status_code == 404
    with httpx.Client(base_url=sandbox.url) as nobody:
        answer = pull(nobody, "dailies", start, start + DAY)
        assert answer.status_code == 401 and "errorMessage" in answer.json()
    limited = api_of(sandbox).rate_limited(60)
    assert limited.status_code == 429 and "retry-after" not in limited.headers


# Backfill ------------------------------------------------------------------------------------------------


def test_backfill_answers(own_sandbox: RunningSandbox, connected: Open) -> None:
    client = connected(own_sandbox, "ada")

    def ask(running: httpx.Client, path: str, first: str, days: int) -> int:
        start = midnight(first)
        window = {"summaryStartTimeInSeconds": start, "summaryEndTimeInSeconds": start + days * DAY}
        answer = running.get(f"{REST}/backfill/{path}", params=window)
        assert answer.content == b"" if answer.status_code == 202 else "errorMessage" in answer.json()
        return answer.status_code

    assert ask(client, "dailies", "2026-06-01", 90) == 202
    assert ask(client, "dailies", "2026-06-01", 90) == 409
    assert ask(client, "dailies", "2026-06-10", 5) == 409
    assert ask(client, "sleeps", "2026-06-10", 5) == 202
    assert ask(client, "dailies", "2026-06-01", 91) == 400
    assert ask(client, "activities", "2026-06-01", 31) == 400
    assert ask(client, "activities", "2026-06-01", 30) == 202
    assert ask(client, "dailies", "2024-06-01", 5) == 400
    assert ask(client, "moveIQ", "2026-06-01", 5) == 404
    assert ask(connected(own_sandbox, "ben", scope="HEALTH_EXPORT"), "dailies", "2026-06-01", 5) == 403
    body = api_of(own_sandbox).backfill_pushes("ada")
    assert set(body) == {"dailies", "sleeps", "activities"}
    assert len({daily["calendarDate"] for daily in body["dailies"]}) in (90, 91)
    assert api_of(own_sandbox).backfill_pushes("ben") == {}


# Webhooks ------------------------------------------------------------------------------------------------


def test_pushes_and_pings_of_a_day(sandbox: RunningSandbox, ada: httpx.Client) -> None:
    api = api_of(sandbox)
    ada.get("/garmin/partner-gateway/rest/user/id")
    calls = api.webhooks("ada", dt.date(2026, 11, 10), "client-1")
    assert {call.headers["garmin-client-id"] for call in calls} == {"client-1"}
    bodies = [json.loads(call.body) for call in calls]
    pushed = [body for body in bodies if "dailies" in body]
    assert len(pushed) == 2
    assert {"epochs", "sleeps", "stressDetails"} <= set(pushed[0])
    users = {item["userId"] for body in bodies for items in body.values() for item in items}
    assert users == {api.summaries["ada"].user_id}
    (ping,) = [body["activities"][0] for body in bodies if "activities" in body]
    assert set(ping) == {"userId", "callbackURL"}
    assert [a["activityType"] for a in ada.get(ping["callbackURL"]).json()] == ["RUNNING"]
    later = api.webhooks("ada", NOW.date() + dt.timedelta(days=1), "client-1")
    assert later == []


def test_one_push_may_hold_many_people(sandbox: RunningSandbox) -> None:
    api = api_of(sandbox)
    start = midnight("2026-11-10")
    body = api.push(["ada", "chen"], start, start + DAY, ["dailies", "hrv"])
    assert set(body) == {"dailies", "hrv"}
    for items in body.values():
        assert {item["userId"] for item in items} == {api.summaries[name].user_id for name in ("ada", "chen")}


def test_over_the_date_line_no_minute_is_lost_or_told_twice(sandbox: RunningSandbox) -> None:
    summaries = api_of(sandbox).summaries["chen"]
    stretches = list(summaries.stretches(midnight("2025-06-01"), midnight("2025-06-25")))
    assert all(a.end == b.start for a, b in itertools.pairwise(stretches))
    dates = [stretch.date for stretch in stretches]
    assert len(dates) > len(set(dates))
