"""Polar's Dynamic API of the sandbox: what is refused, dates without features, tokens that end."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from health_pipeline.sandbox.server import RunningSandbox

ONE_DAY = {"from": "2026-11-04", "to": "2026-11-05"}


@pytest.fixture
def client(own_sandbox: RunningSandbox) -> Iterator[httpx.Client]:
    token = own_sandbox.app.state.apis["polar_v4"].oauth.access_token("ada")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{own_sandbox.url}/polar_v4/v4/data", headers=headers, timeout=20) as client:
        yield client


def test_without_features_there_are_dates_alone_and_with_them_one_day(client: httpx.Client) -> None:
    month = {"from": "2026-10-20", "to": "2026-11-12"}
    listed = client.get("/activity/list", params=month).json()["activities"]["activityDays"]
    assert {tuple(day) for day in listed} == {("date",)}
    assert (min(day["date"] for day in listed), max(day["date"] for day in listed)) == (
        "2026-10-20",
        "2026-11-11",
    )
    assert client.get("/activity/list", params=month | {"features": "samples"}).status_code == 400
    full = client.get("/activity/list", params=ONE_DAY | {"features": "samples"}).json()
    (day,) = full["activities"]["activityDays"]
    (device,) = day["activitiesPerDevice"]
    series = [recording["stepSamples"] for recording in device["activitySamples"]]
    assert sum(len(one["steps"]) for one in series) == 1440
    night = client.get("/sleeps", params=ONE_DAY | {"features": ["sleep-result", "sleep-score"]}).json()
    assert set(night["nightSleeps"][0]) == {"sleepDate", "sleepResult", "sleepScore"}


def test_spans_times_and_scopes_that_are_refused(client: httpx.Client, own_sandbox: RunningSandbox) -> None:
    for path, query in (
        ("/activity/list", {"from": "2026-07-01", "to": "2026-11-01"}),
        ("/nightly-recharge-results", {"from": "2026-10-01", "to": "2026-10-30"}),
        ("/sleeps", {"from": "2026-11-04", "to": "2026-11-04"}),
        ("/training-sessions/list", ONE_DAY),
        ("/training-sessions/list", {"from": "2026-11-04T00:00:00Z", "to": "2026-11-05T00:00:00Z"}),
        ("/sleeps", {}),
    ):
        assert client.get(path, params=query).status_code == 400, (path, query)
    oauth = own_sandbox.app.state.apis["polar_v4"].oauth
    narrow = oauth._issue("access", {"h": "ada", "c": "sandbox", "s": "sleep:read", "f": "f"}, None)
    refused = client.get("/activity/list", params=ONE_DAY, headers={"Authorization": f"Bearer {narrow}"})
    assert (refused.status_code, refused.json()["errorMessage"]) == (403, "Missing required scope")


def test_edited_night_starts_later(client: httpx.Client, own_sandbox: RunningSandbox) -> None:
    query = ONE_DAY | {"features": "sleep-result"}

    def start() -> str:
        night = client.get("/sleeps", params=query).json()["nightSleeps"][0]
        return str(night["sleepResult"]["hypnogram"]["sleepStart"])

    before = start()
    order = {"provider": "polar_v4", "handle": "ada", "day": "2026-11-04"}
    assert httpx.post(f"{own_sandbox.url}/__revise", json=order).json() == {"revised": ["2026-11-04"]}
    assert start() > before
