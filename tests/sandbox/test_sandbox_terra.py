"""The Terra API of the sandbox against the vendor's description and its known quirks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from vendor_spec import assert_response_fits, load_spec, problems_of

from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.sandbox.truth import truth

KINDS = ("activity", "body", "daily", "sleep")
WEEK = {"start_date": "2026-11-09", "end_date": "2026-11-17", "to_webhook": "false"}
Ask = Callable[..., httpx.Response]


def user_id(handle: str, resource: str = "GARMIN") -> str:
    return person(handle).uuid("terra", resource)


@contextmanager
def asking(sandbox: RunningSandbox) -> Iterator[Ask]:
    """`ask("/daily", …)` with the application's key."""
    key = {"dev-id": "sandbox", "x-api-key": "sandbox-secret"}
    with httpx.Client(base_url=f"{sandbox.url}/terra", headers=key, timeout=30) as http:

        def ask(
            path: str, method: str = "GET", headers: Any = None, json: Any = None, **query: str
        ) -> httpx.Response:
            return http.request(method, path, params=query, headers=headers, json=json)

        yield ask


@pytest.fixture
def ask(sandbox: RunningSandbox) -> Iterator[Ask]:
    with asking(sandbox) as get:
        yield get


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return load_spec("terra.yaml")


def records(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("handle", "resource"), [("ben", "GARMIN"), ("dana", "FREESTYLELIBRE")])
def test_every_answer_fits_the_vendors_description(
    ask: Ask, spec: dict[str, Any], kind: str, handle: str, resource: str
) -> None:
    who = {"user_id": user_id(handle, resource)}
    answer = ask(f"/{kind}", **WEEK, **who, with_samples="true")
    assert bool(records(answer)) is (resource == "GARMIN" or kind == "body")
    assert_response_fits(spec, f"/{kind}", "GET", 200, answer.json())
    # Without being told otherwise, Terra answers to the webhook.
    sent = ask(f"/{kind}", **{**WEEK, "to_webhook": ""}, **who)
    assert "data" not in sent.json()
    assert sent.json()["status"] == "success"
    # What the description says of it requires nothing, so that any answer fits the other kind as well.
    assert problems_of(spec, {"$ref": "#/components/schemas/DataSentToWebhook"}, sent.json()) == []
    assert ask(f"/{kind}", **{**WEEK, "end_date": "2026-12-17"}, **who).json()["message"]
    for query, headers, status in (
        ({**WEEK, "user_id": "nobody"}, {}, 404),
        ({**WEEK, **who, "start_date": "soon"}, {}, 400),
        (who, {}, 400),
        ({**WEEK, **who}, {"x-api-key": "wrong"}, 401),
    ):
        refused = ask(f"/{kind}", headers=headers, **query)
        assert refused.status_code == status
        assert refused.headers["content-type"] == "application/problem+json"
        assert_response_fits(spec, f"/{kind}", "GET", status, refused.json())


def test_users_and_sessions_fit_the_vendors_description(
    own_sandbox: RunningSandbox, spec: dict[str, Any]
) -> None:
    with asking(own_sandbox) as ask:
        who = {"user_id": user_id("ada")}
        for path, query in (("/userInfo", who), ("/athlete", {**who, "to_webhook": "false"})):
            assert_response_fits(spec, path, "GET", 200, ask(path, **query).json())
        wanted = {"reference_id": "r-1", "auth_success_redirect_url": "http://localhost/back"}
        session = ask("/auth/generateWidgetSession", "POST", json=wanted)
        assert_response_fits(spec, "/auth/generateWidgetSession", "POST", 200, session.json())
        link = ask("/auth/authenticateUser", "POST", json=wanted, resource="freestylelibre")
        assert_response_fits(spec, "/auth/authenticateUser", "POST", 200, link.json())
        for address, device in (
            (session.json()["url"], "GARMIN"),
            (link.json()["auth_url"], "FREESTYLELIBRE"),
        ):
            assert "Ada" in httpx.get(address).text
            back = httpx.get(address, params={"login_hint": "ada"}).headers["location"]
            assert httpx.URL(back).params["reference_id"] == "r-1"
            assert httpx.URL(back).params["resource"] == device
            assert httpx.get(address, params={"login_hint": "ada"}).status_code == 404
        listed = ask("/userInfo", reference_id="r-1").json()
        assert {user["provider"] for user in listed} == {"GARMIN", "FREESTYLELIBRE"}
        assert_response_fits(spec, "/userInfo", "GET", 200, listed)
        gone = ask("/auth/deauthenticateUser", "DELETE", **who)
        assert_response_fits(spec, "/auth/deauthenticateUser", "DELETE", 200, gone.json())
        assert ask("/daily", **WEEK, **who).status_code == 404
        assert records(ask("/body", **WEEK, user_id=user_id("ada", "FREESTYLELIBRE")))


def test_days_run_from_midnight_to_midnight_and_keep_every_step(ask: Ask) -> None:
    """Of days that begin at four, the sum over a stretch is the same but for its ends."""
    days = records(ask("/daily", **{**WEEK, "start_date": "2026-10-20"}, user_id=user_id("eli")))
    assert [day["metadata"]["start_time"][10:] for day in days] == ["T00:00:00.000000+05:30"] * len(days)
    found = {day["metadata"]["start_time"][:10]: day["distance_data"]["steps"] for day in days}
    lived = truth(person("eli"), dt.date(2026, 10, 20), dt.date(2026, 11, 16))
    assert len(lived) == 28
    recorded = {day["date"]: day["steps_recorded"] for day in lived if day["steps_recorded"]}
    assert found.keys() >= recorded.keys()
    assert abs(sum(found.values()) - sum(recorded.values())) < 700


def test_the_last_day_of_a_window_is_not_in_it_and_today_grows(own_sandbox: RunningSandbox) -> None:
    with asking(own_sandbox) as ask:
        asked = {"start_date": "2026-11-21", "to_webhook": "false", "user_id": user_id("ada")}
        (noon,) = records(ask("/daily", **asked))
        assert noon["heart_rate_data"]["detailed"] is None
        assert records(ask("/daily", **asked, end_date="2026-11-21")) == []
        epoch = str(int(dt.datetime(2026, 11, 21, 8, tzinfo=dt.UTC).timestamp()))
        assert records(ask("/daily", **{**asked, "start_date": epoch})) == [noon]
        httpx.put(f"{own_sandbox.url}/__now", json={"now": "2026-11-21T20:00:00Z"}).raise_for_status()
        (evening,) = records(ask("/daily", **asked, with_samples="true"))
        assert evening["distance_data"]["steps"] > noon["distance_data"]["steps"]
        times = [row["timestamp"] for row in evening["heart_rate_data"]["detailed"]["hr_samples"]]
        assert times == sorted(times)
        assert "2026-11-21T19:50" < max(times) <= "2026-11-21T20:00"


def test_revisions_move_a_night_and_take_a_workout(own_sandbox: RunningSandbox) -> None:
    def revise(kind: str, day: str, status: int = 200) -> list[str]:
        said = {"provider": "terra", "handle": "ada", "day": day, "kind": kind}
        answer = httpx.post(f"{own_sandbox.url}/__revise", json=said)
        assert answer.status_code == status, answer.text
        return answer.json().get("revised", [])

    with asking(own_sandbox) as ask:
        asked = {**WEEK, "user_id": user_id("ada")}
        before = {night["metadata"]["summary_id"]: night for night in records(ask("/sleep", **asked))}
        (changed,) = revise("edit", "2026-11-12")
        after = {night["metadata"]["summary_id"]: night for night in records(ask("/sleep", **asked))}
        assert before.keys() == after.keys()
        assert [id_ for id_ in before if before[id_] != after[id_]] == [changed]
        assert after[changed]["metadata"]["start_time"] > before[changed]["metadata"]["start_time"]
        workout = records(ask("/activity", **asked))[0]
        day = workout["metadata"]["start_time"][:10]
        assert workout["metadata"]["summary_id"] in revise("delete", day)
        assert records(ask("/activity", **asked))[0]["metadata"]["upload_type"] == 4
        revise("delete", "2024-01-01", 404)


def test_glucose_is_what_the_sensor_saw(ask: Ask) -> None:
    days = records(ask("/body", **WEEK, user_id=user_id("dana", "FREESTYLELIBRE"), with_samples="true"))
    lived = truth(person("dana"), dt.date(2026, 11, 9), dt.date(2026, 11, 16))
    for day, true in zip(days, lived, strict=True):
        glucose = day["glucose_data"]
        assert glucose["sensor_usage"] == true["glucose_readings"]
        detailed = glucose["detailed_blood_glucose_samples"]
        assert len(detailed) == true["glucose_readings"]
        assert glucose["blood_glucose_samples"] == detailed[::3]
        assert all(40 <= row["blood_glucose_mg_per_dL"] <= 400 for row in detailed)
        assert day["device_data"]["name"] == "FreeStyle Libre 3"


def test_limits_count_days_of_a_connection(own_sandbox: RunningSandbox) -> None:
    with asking(own_sandbox) as ask:
        who = {"user_id": user_id("ben"), "to_webhook": "false"}
        far = ask("/daily", start_date="2020-01-01", end_date="2026-01-01", **who)
        assert (far.status_code, far.headers["x-terra-ratelimit-rule"]) == (429, "r1")
        for _ in range(4):
            assert ask("/daily", start_date="2022-01-01", end_date="2026-01-01", **who).status_code == 200
        full = ask("/daily", start_date="2022-01-01", end_date="2026-01-01", **who)
        assert (full.status_code, full.headers["x-terra-ratelimit-rule"]) == (429, "r2")
        assert full.json() == {"detail": "rate limit exceeded"}
        assert 3500 < int(full.headers["retry-after"]) <= 3600
        assert ask("/daily", **WEEK, user_id=user_id("eli")).status_code == 200
