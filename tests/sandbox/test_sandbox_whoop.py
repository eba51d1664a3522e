"""The WHOOP API of the sandbox against the vendor's description and its known quirks."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sandbox_client import NOW, REDIRECT
from vendor_spec import assert_response_fits, load_spec

from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.sandbox.truth import truth

LISTS = {
    "/v2/cycle": "cycle",
    "/v2/recovery": "recovery",
    "/v2/activity/sleep": "sleep",
    "/v2/activity/workout": "workout",
}
SCOPES = "read:recovery read:cycles read:sleep read:workout read:profile read:body_measurement offline"

Open = Callable[..., httpx.Client]


@pytest.fixture
def whoop() -> Iterator[Open]:
    """A client at WHOOP's address with the token of a person: `whoop(sandbox, "ada")`."""
    opened: list[httpx.Client] = []

    def open_client(sandbox: RunningSandbox, handle: str) -> httpx.Client:
        token = sandbox.app.state.apis["whoop"].oauth.access_token(handle)
        client = httpx.Client(
            base_url=f"{sandbox.url}/whoop", headers={"Authorization": f"Bearer {token}"}, timeout=20
        )
        opened.append(client)
        return client

    yield open_client
    for client in opened:
        client.close()


def all_records(client: httpx.Client, path: str, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["records"]
        if "next_token" not in page:
            return found
        query["nextToken"] = page["next_token"]


def tokens(client: httpx.Client, scope: str) -> httpx.Response:
    app = {"client_id": "sandbox", "redirect_uri": REDIRECT}
    asked = {**app, "response_type": "code", "scope": scope, "state": "12345678", "login_hint": "ada"}
    code = httpx.URL(client.get("/oauth/oauth2/auth", params=asked).headers["location"]).params["code"]
    grant = {"grant_type": "authorization_code", "client_secret": "sandbox-secret", "code": code}
    return client.post("/oauth/oauth2/token", data={**app, **grant})


def test_every_route_answers_as_the_vendor_describes(sandbox: RunningSandbox, whoop: Open) -> None:
    spec = load_spec("whoop.yaml")
    states = set()
    for handle in ("ada", "chen", "eli"):
        client = whoop(sandbox, handle)
        for path, name in LISTS.items():
            window = {"start": "2026-08-01T00:00:00Z", "end": "2026-11-21T12:00:00Z", "limit": "25"}
            records = all_records(client, path, **window)
            assert len(records) > 25
            page = client.get(path, params=window).json()
            assert_response_fits(spec, path, "GET", 200, page)
            assert_response_fits(spec, path, "GET", 200, {"records": records})
            states |= {record["score_state"] for record in records}
            if name in ("sleep", "workout"):
                template = f"{path}/{{{name}Id}}"
                one = client.get(f"{path}/{records[3]['id']}").json()
                assert one == records[3]
                assert_response_fits(spec, template, "GET", 200, one)
        cycles = all_records(client, "/v2/cycle", start="2026-11-10T00:00:00Z")
        for below, template in (
            ("", "/v2/cycle/{cycleId}"),
            ("/sleep", "/v2/cycle/{cycleId}/sleep"),
            ("/recovery", "/v2/cycle/{cycleId}/recovery"),
        ):
            answers = [client.get(f"/v2/cycle/{cycle['id']}{below}") for cycle in cycles]
            found = [answer.json() for answer in answers if answer.status_code == 200]
            assert len(found) > 5
            for one in found:
                assert_response_fits(spec, template, "GET", 200, one)
        for path in ("/v2/user/measurement/body", "/v2/user/profile/basic"):
            assert_response_fits(spec, path, "GET", 200, client.get(path).json())
    assert states == {"SCORED", "UNSCORABLE"}


def test_numbers_are_those_of_the_truth(sandbox: RunningSandbox, whoop: Open) -> None:
    client = whoop(sandbox, "ada")
    true = {day["date"]: day for day in truth(person("ada"), dt.date(2026, 9, 2), dt.date(2026, 9, 30))}
    window = {"start": "2026-09-01T18:00:00Z", "end": "2026-09-30T17:00:00Z", "limit": "25"}
    nights = [r for r in all_records(client, "/v2/activity/sleep", **window) if not r["nap"]]
    assert {night["end"][:10] for night in nights} == {day for day, t in true.items() if t["night_worn"]}
    recoveries = {r["sleep_id"]: r for r in all_records(client, "/v2/recovery", **window)}
    for night in nights:
        day = true[night["end"][:10]]
        if night["score_state"] == "UNSCORABLE":
            assert "score" not in night
            assert "score" not in recoveries[night["id"]]
            continue
        stages = night["score"]["stage_summary"]
        assert stages["total_slow_wave_sleep_time_milli"] == 1000 * day["deep_sleep_seconds"]
        assert stages["total_rem_sleep_time_milli"] == 1000 * day["rem_sleep_seconds"]
        parts = ("awake", "no_data", "light_sleep", "slow_wave_sleep", "rem_sleep")
        assert sum(stages[f"total_{part}_time_milli"] for part in parts) == stages["total_in_bed_time_milli"]
        score = recoveries[night["id"]]["score"]
        assert score["resting_heart_rate"] == day["resting_heart_rate"]
        assert round(score["hrv_rmssd_milli"]) == day["hrv"]
    assert any(night["score_state"] == "UNSCORABLE" for night in nights)


def test_cycles_follow_each_other_without_a_gap(sandbox: RunningSandbox, whoop: Open) -> None:
    cycles = all_records(whoop(sandbox, "chen"), "/v2/cycle", start="2026-05-01T00:00:00Z", limit="25")
    assert "end" not in cycles[0]
    assert all(later["start"] == earlier["end"] for later, earlier in itertools.pairwise(cycles))
    assert len({cycle["id"] for cycle in cycles}) == len(cycles) > 190


def test_the_answer_does_not_depend_on_the_size_of_the_page(sandbox: RunningSandbox, whoop: Open) -> None:
    client = whoop(sandbox, "eli")
    window = {"start": "2026-09-01T00:00:00Z", "end": "2026-10-01T00:00:00Z"}
    for path in LISTS:
        usual = client.get(path, params=window).json()
        assert len(usual["records"]) == 10
        assert usual["next_token"]
        assert all_records(client, path, **window, limit="3") == all_records(
            client, path, **window, limit="25"
        )


def test_start_is_included_end_is_not_and_records_that_overlap_are_in(
    sandbox: RunningSandbox, whoop: Open
) -> None:
    client = whoop(sandbox, "ada")
    path = "/v2/activity/sleep"
    night = all_records(client, path, start="2026-09-10T00:00:00Z", end="2026-09-10T05:00:00Z")[0]
    within = {"start": "2026-09-10T02:00:00Z", "end": "2026-09-10T02:00:01Z"}
    assert all_records(client, path, **within) == [night]
    before = {"start": "2026-09-09T12:00:00Z", "end": night["start"]}
    assert all_records(client, path, **before) == []


@pytest.mark.parametrize(
    ("minutes", "sleep", "recovery"), [(5, None, 404), (15, "PENDING_SCORE", 404), (31, "SCORED", 200)]
)
def test_the_score_comes_after_the_sleep(whoop: Open, minutes: int, sleep: str | None, recovery: int) -> None:
    woke = dt.datetime.fromisoformat(truth(person("ada"), *[dt.date(2026, 10, 15)] * 2)[0]["bedtime_end"])
    with run_in_thread(now=lambda: woke + dt.timedelta(minutes=minutes)) as sandbox:
        client = whoop(sandbox, "ada")
        newest = client.get("/v2/activity/sleep").json()["records"][0]
        told = newest["score_state"] if newest["end"].startswith("2026-10-15") else None
        assert told == sleep
        cycle = client.get("/v2/cycle").json()["records"][0]
        if sleep is not None:
            assert cycle["score_state"] == sleep
            assert client.get(f"/v2/cycle/{cycle['id']}/recovery").status_code == recovery
        assert all(
            record["updated_at"] <= f"{sandbox.app.state.sandbox.now():%Y-%m-%dT%H:%M:%S.999Z}"
            for path in LISTS
            for record in client.get(path).json()["records"]
        )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"limit": "26"}, "limit"),
        ({"limit": "0"}, "limit"),
        ({"start": "yesterday"}, "start"),
        ({"end": "2026-09-01T00:00:00"}, "offset"),
        ({"nextToken": "x"}, "nextToken"),
        ({"start": "2026-09-02T00:00:00Z", "end": "2026-09-01T00:00:00Z"}, "after"),
    ],
)
def test_bad_queries(sandbox: RunningSandbox, whoop: Open, query: dict[str, str], message: str) -> None:
    answer = whoop(sandbox, "ada").get("/v2/cycle", params=query)
    assert answer.status_code == 400
    assert message in answer.json()["message"]


def test_unknown_and_others_records_are_not_found(sandbox: RunningSandbox, whoop: Open) -> None:
    mine = whoop(sandbox, "ada").get("/v2/activity/sleep").json()["records"][0]
    ben = whoop(sandbox, "ben")
    for path in (f"/v2/activity/sleep/{mine['id']}", f"/v2/cycle/{mine['cycle_id']}", "/v2/cycle/1/recovery"):
        assert ben.get(path).status_code == 404


def test_a_refresh_token_is_for_those_who_asked_for_offline(sandbox: RunningSandbox) -> None:
    with httpx.Client(base_url=f"{sandbox.url}/whoop") as client:
        assert "refresh_token" not in tokens(client, SCOPES.removesuffix(" offline")).json()
        first = tokens(client, SCOPES).json()
        assert first["expires_in"] == 3600
        form = {
            "client_id": "sandbox",
            "client_secret": "sandbox-secret",
            "grant_type": "refresh_token",
            "refresh_token": first["refresh_token"],
            "scope": "offline",
        }
        second = client.post("/oauth/oauth2/token", data=form)
        assert second.json()["refresh_token"] != first["refresh_token"]
        # The old one stops working.
        assert client.post("/oauth/oauth2/token", data=form).json()["error"] == "invalid_grant"


def test_revoking_ends_the_grant(own_sandbox: RunningSandbox, whoop: Open) -> None:
    client = whoop(own_sandbox, "ada")
    answer = client.delete("/v2/user/access")
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get("/v2/cycle").status_code == 401


def test_edit_moves_a_night_and_delete_takes_it_away(own_sandbox: RunningSandbox, whoop: Open) -> None:
    client = whoop(own_sandbox, "ada")
    window = {"start": "2026-09-09T18:00:00Z", "end": "2026-09-10T08:00:00Z"}

    def night() -> list[dict[str, Any]]:
        return all_records(client, "/v2/activity/sleep", **window)

    def revise(kind: str) -> httpx.Response:
        order = {"provider": "whoop", "handle": "ada", "day": "2026-09-10", "kind": kind}
        return httpx.post(f"{own_sandbox.url}/__revise", json=order)

    (before,) = night()
    assert revise("edit").json() == {"revised": [before["id"]]}
    (after,) = night()
    assert (after["id"], after["end"]) == (before["id"], before["end"])
    assert after["start"] > before["start"]
    assert after["updated_at"] == "2026-11-21T12:00:00.000Z"
    calls = own_sandbox.app.state.apis["whoop"].webhooks("ada", dt.date(2026, 9, 10), "s")
    assert [call.body.split(b'"type":"')[1].split(b'"')[0] for call in calls][-2:] == [
        b"sleep.updated",
        b"recovery.updated",
    ]
    revise("delete")
    assert night() == []
    assert all_records(client, "/v2/recovery", **window) == []
    assert revise("edit").status_code == 404


def test_notices_pass_the_check_of_their_signature(sandbox: RunningSandbox) -> None:
    from health_pipeline.providers.base import WebhookRequest
    from health_pipeline.providers.whoop import verify

    for call in sandbox.app.state.apis["whoop"].webhooks("ada", dt.date(2026, 9, 10), "client-secret"):
        headers = {name.lower(): (value,) for name, value in call.headers.items()}
        request = WebhookRequest(call.method, "/", call.query, headers, call.body, NOW)
        assert verify(request, ["client-secret"])
        assert not verify(request, ["another"])


def test_limit_is_told_in_seconds(own_sandbox: RunningSandbox, whoop: Open) -> None:
    fault = {"provider": "whoop", "kind": "rate_limit", "retry_after": 7}
    assert httpx.post(f"{own_sandbox.url}/__faults", json=fault).status_code == 201
    answer = whoop(own_sandbox, "ada").get("/v2/cycle")
    assert (answer.status_code, answer.headers["X-RateLimit-Reset"]) == (429, "7")
    assert "Retry-After" not in answer.headers
