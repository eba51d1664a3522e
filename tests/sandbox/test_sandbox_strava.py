"""The Strava API of the sandbox against the vendor's examples and its known quirks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from sandbox_client import REDIRECT
from vendor_spec import load_spec

from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.sandbox.truth import truth

Open = Callable[..., httpx.Client]
AUGUST = {"after": "1785542400", "before": "1788220800", "per_page": "200"}


@pytest.fixture
def strava() -> Iterator[Open]:
    """A client at Strava's address with the token of a person: `strava(sandbox, "ben")`."""
    opened: list[httpx.Client] = []

    def open_client(sandbox: RunningSandbox, handle: str, scopes: str | None = None) -> httpx.Client:
        oauth = sandbox.app.state.apis["strava"].oauth
        claims = {"h": handle, "c": "sandbox", "s": scopes, "f": "narrow"}
        token = oauth.access_token(handle) if scopes is None else oauth._issue("access", claims, None)
        headers = {"Authorization": f"Bearer {token}"}
        opened.append(httpx.Client(base_url=f"{sandbox.url}/strava", headers=headers, timeout=20))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def activities(client: httpx.Client, **query: str) -> list[dict[str, Any]]:
    answer = client.get("/athlete/activities", params={**AUGUST, **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def assert_like(example: Any, ours: Any, path: str = "$") -> None:
    """Of the same kind, field by field, as the vendor's example; null and empty say nothing."""
    if example is None or ours is None:
        return
    if isinstance(example, bool) or not isinstance(example, int | float):
        assert type(ours) is type(example), path
    else:
        assert isinstance(ours, int | float) and not isinstance(ours, bool), path
    if isinstance(example, dict):
        for name in set(example) & set(ours):
            assert_like(example[name], ours[name], f"{path}.{name}")
    elif isinstance(example, list) and example and ours:
        assert_like(example[0], ours[0], f"{path}[0]")


def test_answers_look_like_the_vendors_examples(sandbox: RunningSandbox, strava: Open) -> None:
    paths = load_spec("strava.json")["paths"]
    client = strava(sandbox, "ben")
    rides = [activity for activity in activities(client) if activity["type"] == "Ride"]
    summary = paths["/athlete/activities"]["get"]["responses"]["200"]["examples"]["application/json"][0]
    without_power = {"average_cadence", "average_watts", "weighted_average_watts", "max_watts"}
    assert set(summary) - set(rides[0]) == without_power
    assert_like(summary, rides[0])
    detail = client.get(f"/activities/{rides[0]['id']}").json()
    example = paths["/activities/{id}"]["get"]["responses"]["200"]["examples"]["application/json"]
    assert_like(example, detail)
    assert {"calories", "segment_efforts", "splits_metric", "laps"} <= set(example) & set(detail)
    athlete = paths["/athlete"]["get"]["responses"]["200"]["examples"]["application/json"]
    assert_like(athlete, client.get("/athlete").json())


def test_activities_are_the_workouts_that_were_done(sandbox: RunningSandbox, strava: Open) -> None:
    done = [
        workout
        for day in truth(person("ben"), dt.date(2026, 7, 31), dt.date(2026, 9, 1))
        for workout in day["workouts"]
    ]
    started = {dt.datetime.fromisoformat(workout["start"]) for workout in done}
    zones = set()
    for activity in activities(strava(sandbox, "ben")):
        start = dt.datetime.fromisoformat(activity["start_date"])
        assert start in started
        zone = activity["timezone"].split(") ")[1]
        zones.add(activity["timezone"])
        local = start.astimezone(ZoneInfo(zone))
        assert activity["start_date_local"] == f"{local:%Y-%m-%dT%H:%M:%SZ}"
        assert activity["utc_offset"] == local.utcoffset().total_seconds()
    assert zones == {"(GMT+01:00) Europe/Berlin", "(GMT-05:00) America/New_York"}


def test_pages_are_ascending_after_and_newest_first_without(sandbox: RunningSandbox, strava: Open) -> None:
    client = strava(sandbox, "chen")
    whole = [activity["id"] for activity in activities(client)]
    assert whole == sorted(whole)
    paged = [activities(client, page=str(page), per_page="4") for page in range(1, 9)]
    assert [activity["id"] for page in paged for activity in page] == whole
    assert paged[-1] == []
    newest = client.get("/athlete/activities").json()
    assert len(newest) == 30
    starts = [activity["start_date"] for activity in newest]
    assert starts == sorted(starts, reverse=True)
    assert client.get("/athlete/activities", params={"per_page": "201"}).status_code == 400


def test_streams_are_the_heart_rate_of_the_activity(sandbox: RunningSandbox, strava: Open) -> None:
    client = strava(sandbox, "ben")
    activity = next(a for a in activities(client) if a["has_heartrate"])
    path = f"/activities/{activity['id']}/streams"
    streams = client.get(path, params={"keys": "time,heartrate", "key_by_type": "true"}).json()
    assert set(streams) == {"time", "distance", "heartrate"}
    seconds, bpm = streams["time"]["data"], streams["heartrate"]["data"]
    assert len(seconds) == len(bpm) == streams["time"]["original_size"]
    assert seconds[0] >= 0 and seconds[-1] < activity["elapsed_time"]
    assert max(bpm) == activity["max_heartrate"]
    assert client.get(path, params={"keys": "time"}).status_code == 400


def test_what_is_private_needs_the_scope_for_all(sandbox: RunningSandbox, strava: Open) -> None:
    everything = activities(strava(sandbox, "chen"))
    private = [activity for activity in everything if activity["private"]]
    assert private
    public_only = strava(sandbox, "chen", "read activity:read")
    assert activities(public_only) == [activity for activity in everything if not activity["private"]]
    assert public_only.get(f"/activities/{private[0]['id']}").status_code == 404
    assert public_only.get("/athlete").json().get("weight") is None
    refused = strava(sandbox, "chen", "read").get("/athlete/activities")
    assert refused.status_code == 401
    assert refused.json()["errors"][0]["field"] == "activity:read_permission"


def test_nothing_is_there_before_it_was_uploaded(strava: Open) -> None:
    workout = next(
        w for day in truth(person("ben"), dt.date(2026, 8, 1), dt.date(2026, 8, 31)) for w in day["workouts"]
    )
    end = dt.datetime.fromisoformat(workout["end"])
    for minutes, there in ((5, False), (11, True)):
        with run_in_thread(now=lambda minutes=minutes: end + dt.timedelta(minutes=minutes)) as sandbox:
            starts = [
                dt.datetime.fromisoformat(activity["start_date"])
                for activity in strava(sandbox, "ben").get("/athlete/activities").json()
            ]
            assert (dt.datetime.fromisoformat(workout["start"]) in starts) is there


def test_tokens_say_when_they_expire_and_not_what_for(sandbox: RunningSandbox) -> None:
    with httpx.Client(base_url=f"{sandbox.url}/strava") as client:
        app = {"client_id": "sandbox", "redirect_uri": REDIRECT}
        scope = "read,activity:read_all"
        asked = {**app, "response_type": "code", "scope": scope, "state": "s", "login_hint": "ada"}
        code = httpx.URL(client.get("/oauth/authorize", params=asked).headers["location"]).params["code"]
        secret = {"client_secret": "sandbox-secret"}
        form = {**app, **secret, "grant_type": "authorization_code", "code": code}
        token = client.post("/oauth/token", data=form).json()
        assert token["expires_in"] == 21_600
        assert token["expires_at"] - dt.datetime.now(dt.UTC).timestamp() > 21_000
        assert "scope" not in token
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        assert client.get("/athlete/activities", headers=headers).status_code == 200
        revoked = client.post(
            "/oauth/revoke", data={"token": token["refresh_token"]}, auth=("sandbox", "sandbox-secret")
        )
        assert revoked.status_code == 200
        assert client.get("/athlete/activities", headers=headers).status_code == 401


def test_edit_and_delete(own_sandbox: RunningSandbox, strava: Open) -> None:
    client = strava(own_sandbox, "ben")
    api = own_sandbox.app.state.apis["strava"]
    ride = next(activity for activity in activities(client) if activity["type"] == "Ride")
    day = dt.date.fromisoformat(ride["start_date_local"][:10])
    order = {"provider": "strava", "handle": "ben", "day": str(day)}
    assert b'"aspect_type":"create"' in api.webhooks("ben", day, "s")[0].body
    edited = httpx.post(f"{own_sandbox.url}/__revise", json={**order, "kind": "edit"}).json()
    assert edited == {"revised": [str(ride["id"])]}
    assert client.get(f"/activities/{ride['id']}").json()["sport_type"] == "GravelRide"
    assert b'"aspect_type":"update"' in api.webhooks("ben", day, "s")[0].body
    httpx.post(f"{own_sandbox.url}/__revise", json={**order, "kind": "delete"})
    assert client.get(f"/activities/{ride['id']}").status_code == 404
    assert ride["id"] not in [activity["id"] for activity in activities(client)]
    assert b'"aspect_type":"delete"' in api.webhooks("ben", day, "s")[0].body
    assert httpx.post(f"{own_sandbox.url}/__revise", json=order).status_code == 404


def test_usage_is_told_with_every_answer_and_no_time_with_a_429(
    own_sandbox: RunningSandbox, strava: Open
) -> None:
    client = strava(own_sandbox, "ada")
    assert client.get("/athlete").headers["X-ReadRateLimit-Usage"] == "1,1"
    fault = {"provider": "strava", "kind": "rate_limit"}
    assert httpx.post(f"{own_sandbox.url}/__faults", json=fault).status_code == 201
    answer = client.get("/athlete")
    assert answer.status_code == 429
    assert answer.headers["X-ReadRateLimit-Usage"].startswith("101,")
    assert not {"retry-after", "x-ratelimit-reset"} & set(answer.headers)
