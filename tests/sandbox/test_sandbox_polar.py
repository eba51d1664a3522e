"""The Polar API of the sandbox against the vendor's description and its known quirks."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator

import httpx
import pytest
from vendor_spec import assert_response_fits, load_spec

from health_pipeline.sandbox.server import RunningSandbox

DAYS = {"from": "2026-11-01", "to": "2026-11-12"}
ROUTES = [
    ("/v3/users/activities", "/v3/users/activities", DAYS),
    ("/v3/users/activities/samples", "/v3/users/activities/samples", DAYS),
    ("/v3/users/activities/samples/{date}", "/v3/users/activities/samples/2026-11-04", {}),
    ("/v3/exercises", "/v3/exercises", {}),
    ("/v3/users/sleep", "/v3/users/sleep", {}),
    ("/v3/users/sleep/{date}", "/v3/users/sleep/2026-11-04", {}),
    ("/v3/users/nightly-recharge", "/v3/users/nightly-recharge", {}),
    ("/v3/users/nightly-recharge/{date}", "/v3/users/nightly-recharge/2026-11-04", {}),
    ("/v3/users/continuous-heart-rate/{date}", "/v3/users/continuous-heart-rate/2026-11-04", {}),
    ("/v3/users/physical-info", "/v3/users/physical-info", {}),
    ("/v3/users/cardio-load/date", "/v3/users/cardio-load/date", DAYS),
    ("/v3/users/biosensing/skintemperature", "/v3/users/biosensing/skintemperature", DAYS),
    ("/v3/users/biosensing/spo2", "/v3/users/biosensing/spo2", DAYS),
]


@pytest.fixture
def client(own_sandbox: RunningSandbox) -> Iterator[httpx.Client]:
    token = own_sandbox.app.state.apis["polar"].oauth.access_token("ada")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{own_sandbox.url}/polar", headers=headers, timeout=20) as client:
        yield client


def test_registration_comes_first_and_only_once(client: httpx.Client) -> None:
    assert client.get("/v3/users/sleep").status_code == 403
    assert client.post("/v3/users", json={}).status_code == 400
    registered = client.post("/v3/users", json={"member-id": "m"})
    assert (registered.status_code, registered.json()["member-id"]) == (200, "m")
    assert client.post("/v3/users", json={"member-id": "m"}).status_code == 409
    user = registered.json()["polar-user-id"]
    assert client.get(f"/v3/users/{user}").json()["polar-user-id"] == user
    assert client.delete(f"/v3/users/{user}").status_code == 204
    assert client.get("/v3/users/sleep").status_code == 401


def test_answers_fit_the_vendors_description(client: httpx.Client) -> None:
    spec = load_spec("polar-v3.yaml")
    client.post("/v3/users", json={"member-id": "m"})
    for template, path, query in ROUTES:
        answer = client.get(path, params=query)
        assert answer.status_code == 200, path
        assert answer.json()
        assert_response_fits(spec, template, "get", 200, answer.json())
        limits = (answer.headers["RateLimit-Usage"], answer.headers["RateLimit-Limit"])
        assert [len(value.split(",")) for value in limits] == [2, 2]


def test_samples_of_steps_add_up_to_the_day(client: httpx.Client) -> None:
    client.post("/v3/users", json={"member-id": "m"})
    totals = {
        day["start_time"][:10]: day["steps"] for day in client.get("/v3/users/activities", params=DAYS).json()
    }
    assert len(totals) == 12
    assert client.get("/v3/users/activities/samples/2027-01-01").status_code == 204
    for day in client.get("/v3/users/activities/samples", params=DAYS).json():
        samples = day["steps"]["samples"]
        minutes = [60 * int(one["timestamp"][11:13]) + int(one["timestamp"][14:16]) for one in samples]
        assert {one["timestamp"][:10] for one in samples} == {day["date"]}
        assert minutes == sorted(set(minutes))
        # A count holds until the next: no two that follow each other are the same.
        assert all(one["steps"] != other["steps"] for one, other in itertools.pairwise(samples))
        lengths = [end - start for start, end in itertools.pairwise([*minutes, 1440])]
        said = sum(one["steps"] * length for one, length in zip(samples, lengths, strict=True))
        assert said == day["steps"]["total_steps"] == totals[day["date"]] > 0


def test_spans_and_dates_that_are_refused(client: httpx.Client) -> None:
    client.post("/v3/users", json={"member-id": "m"})
    for query in (
        {"from": "2026-10-01", "to": "2026-10-29"},
        {"from": "2026-10-05", "to": "2026-10-01"},
        {"from": "soon"},
    ):
        assert client.get("/v3/users/activities", params=query).status_code == 400, query
    assert client.get("/v3/users/sleep/2026-09-01").status_code == 404
    assert client.get("/v3/users/continuous-heart-rate/2027-01-01").status_code == 204


def test_only_the_last_weeks_are_kept(client: httpx.Client) -> None:
    client.post("/v3/users", json={"member-id": "m"})
    dates = [night["date"] for night in client.get("/v3/users/sleep").json()["nights"]]
    assert dates == sorted(dates)
    assert min(dates) >= "2026-10-25"
    assert max(dates) >= "2026-11-20"
    starts = [exercise["start_time"][:10] for exercise in client.get("/v3/exercises").json()]
    assert min(starts) >= "2026-10-22"


def test_edited_night_starts_later(client: httpx.Client, own_sandbox: RunningSandbox) -> None:
    client.post("/v3/users", json={"member-id": "m"})
    before = client.get("/v3/users/sleep/2026-11-04").json()
    order = {"provider": "polar", "handle": "ada", "day": "2026-11-04"}
    revised = httpx.post(f"{own_sandbox.url}/__revise", json=order)
    assert revised.json() == {"revised": ["2026-11-04"]}
    after = client.get("/v3/users/sleep/2026-11-04").json()
    assert after["sleep_start_time"] > before["sleep_start_time"]
    assert after["sleep_end_time"] == before["sleep_end_time"]


def test_token_comes_without_a_refresh_token_for_a_client_that_signs_in_by_basic(
    own_sandbox: RunningSandbox,
) -> None:
    redirect = "http://localhost:3000/callback"
    with httpx.Client(base_url=f"{own_sandbox.url}/polar", timeout=20) as client:
        asked = {
            "client_id": "sandbox",
            "redirect_uri": redirect,
            "response_type": "code",
            "scope": "accesslink.read_all",
            "login_hint": "ada",
        }
        answer = client.get("/oauth2/authorization", params=asked)
        code = httpx.URL(answer.headers["location"]).params["code"]
        basic = base64.b64encode(b"sandbox:sandbox-secret").decode()
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect}
        given = client.post("/v2/oauth2/token", data=form, headers={"Authorization": f"Basic {basic}"})
        assert set(given.json()) == {"access_token", "token_type", "expires_in", "x_user_id"}
        assert given.json()["expires_in"] > 86_400 * 365
