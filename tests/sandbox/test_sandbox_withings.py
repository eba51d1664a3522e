"""The Withings API of the sandbox against the vendor's description, recorded answers and known quirks."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sandbox_client import NOW, shared_folder
from vendor_spec import load_spec, problems_of

from health_pipeline.sandbox.oauth import TokenError
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.routers.withings import _user_id
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.sandbox.truth import truth

REDIRECT = "http://localhost:3000/callback"
Post = Callable[..., dict[str, Any]]

DAYS = {"startdateymd": "2026-10-01", "enddateymd": "2026-10-31"}
EPOCHS = {"startdate": "1790812800", "enddate": "1793404800"}  # 1 to 31 October, midnights UTC
ALL_SLEEP = (
    "total_timeinbed,total_sleep_time,lightsleepduration,deepsleepduration,remsleepduration,wakeupduration,"
    "sleep_efficiency,sleep_latency,wakeup_latency,waso,hr_average,hr_min,hr_max,rr_average,sleep_score,"
    "rmssd_start_avg,rmssd_end_avg,nb_rem_episodes,out_of_bed_count,wakeupcount"
)
ALL_ACTIVITY = (
    "steps,distance,elevation,soft,moderate,intense,active,calories,totalcalories,hr_average,hr_zone_0"
)
CALLS = {
    "measure-getmeas": ("/measure", {"action": "getmeas", **EPOCHS}),
    "measurev2-getactivity": (
        "/v2/measure",
        {"action": "getactivity", **DAYS, "data_fields": ALL_ACTIVITY},
    ),
    "measurev2-getintradayactivity": (
        "/v2/measure",
        {"action": "getintradayactivity", **EPOCHS, "data_fields": "steps,distance,duration,heart_rate"},
    ),
    "measurev2-getworkouts": (
        "/v2/measure",
        {
            "action": "getworkouts",
            **DAYS,
            "data_fields": "calories,distance,steps,hr_average,hr_max,intensity",
        },
    ),
    "sleepv2-getsummary": ("/v2/sleep", {"action": "getsummary", **DAYS, "data_fields": ALL_SLEEP}),
    "sleepv2-get": ("/v2/sleep", {"action": "get", **EPOCHS, "data_fields": "hr,rmssd"}),
    "userv2-getdevice": ("/v2/user", {"action": "getdevice"}),
}


@pytest.fixture
def post(sandbox: RunningSandbox) -> Iterator[Post]:
    """The body of an answer whose status is the one expected."""
    with httpx.Client(base_url=f"{sandbox.url}/withings", timeout=20) as client:

        def call(
            path: str, form: dict[str, str], handle: str = "ada", status: int = 0, **headers: str
        ) -> Any:
            token = sandbox.app.state.apis["withings"].oauth.access_token(handle)
            signed = {"Authorization": f"Bearer {token}", **headers}
            answer = client.post(path, data=form, headers=signed)
            assert answer.status_code == 200
            found = answer.json()
            assert found["status"] == status, found
            return found["body"]

        yield call


def test_a_consent_is_revoked_by_a_signed_call_alone(sandbox: RunningSandbox) -> None:
    """Nonce and signature are checked: of another secret, used twice, or made up, they end nothing."""

    def call(
        path: str, last: str, value: str, *, secret: str = "sandbox-secret", **form: str
    ) -> dict[str, Any]:
        action = "getnonce" if last == "timestamp" else "revoke"
        text = f"{action},sandbox,{value}".encode()
        signature = hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()
        said = {"action": action, "client_id": "sandbox", last: value, "signature": signature, **form}
        answer = httpx.post(f"{sandbox.url}/withings{path}", data=said, timeout=20)
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    def nonce() -> str:
        text: str = call("/v2/signature", "timestamp", "1790812800")["body"]["nonce"]
        return text

    api = sandbox.app.state.apis["withings"]
    oauth = api.oauth
    token = oauth.access_token("ada")
    assert call("/v2/signature", "timestamp", "1790812800", secret="other")["status"] == 277
    assert call("/v2/signature", "timestamp", "noon")["status"] == 503
    user = str(_user_id("ada"))
    shown = nonce()
    assert call("/v2/oauth2", "nonce", shown, secret="other", userid=user)["status"] == 277
    assert call("/v2/oauth2", "nonce", shown, userid=user)["status"] == 277
    assert call("/v2/oauth2", "nonce", "made up", userid=user)["status"] == 277
    api._nonces[old := nonce()] -= 3600
    assert call("/v2/oauth2", "nonce", old, userid=user)["status"] == 277
    assert call("/v2/oauth2", "nonce", nonce(), userid="1")["status"] == 503
    assert oauth._read("access", token)["h"] == "ada"
    assert call("/v2/oauth2", "nonce", nonce(), userid=user) == {"status": 0, "body": {}}
    with pytest.raises(TokenError, match="revoked"):
        oauth._read("access", token)


def schema_of(spec: dict[str, Any], operation: str) -> dict[str, Any]:
    """The vendor writes its paths with blanks at the end, one more for each action."""
    for actions in spec["paths"].values():
        for call in actions.values() if isinstance(actions, dict) else ():
            if call.get("operationId") == operation:
                schema: dict[str, Any] = call["responses"][200]["content"]["application/json"]["schema"]
                return schema
    raise LookupError(operation)


def test_every_answer_fits_the_vendors_description(post: Post) -> None:
    spec = load_spec("withings.yaml")
    for operation, (path, form) in CALLS.items():
        for handle in ("ada", "eli"):
            body = post(path, form, handle)
            answer = {"status": 0, "body": body}
            schema = schema_of(spec, operation)
            if operation == "sleepv2-get":
                # Described as one object; recorded answers have a list of them.
                assert len(body["series"]) > 20
                part = schema["properties"]["body"]["properties"].pop("series")
                assert [p for each in body["series"] for p in problems_of(spec, part, each)] == []
                schema["properties"]["body"]["properties"]["series"] = part
                body.pop("series")
            if operation == "measure-getmeas":
                # Described as text; recorded answers have a number.
                assert isinstance(body.pop("updatetime"), int)
            if operation == "measurev2-getintradayactivity":
                sample = schema["properties"]["body"]["properties"]["series"]["properties"]["$timestamp"]
                assert [p for each in body["series"].values() for p in problems_of(spec, sample, each)] == []
            assert problems_of(spec, schema, answer) == [], operation


def test_answers_have_the_fields_of_recorded_ones(post: Post) -> None:
    folder = shared_folder() / "data" / "withings"
    if not folder.exists():
        pytest.skip(f"recorded answers are not here: {folder}")

    def recorded(name: str, *path: Any) -> dict[str, Any]:
        found = json.loads((folder / name).read_text())
        for step in path:
            found = found[step]
        return dict(found)

    group = post(*CALLS["measure-getmeas"])["measuregrps"][0]
    assert set(recorded("measurement.json", "body", "measuregrps", 0)) - {"comment"} == set(group)
    day = post("/v2/measure", {"action": "getactivity", **DAYS, "data_fields": ALL_ACTIVITY})["activities"][0]
    named = set(ALL_ACTIVITY.split(","))
    assert set(recorded("activity.json", "body", "activities", 0)) & set(day) >= named | {
        "brand",
        "is_tracker",
    }
    night = post("/v2/sleep", {"action": "getsummary", **DAYS})["series"][0]
    theirs = recorded("sleep_summary_no_datafields.json", "body", "series", 0)
    assert set(theirs) <= set(night)
    assert set(theirs["data"]) == set(night["data"])
    part = post("/v2/sleep", {"action": "get", **EPOCHS})["series"][0]
    assert set(recorded("sleep_no_datafields.json", "body", "series", 0)) == set(part)


def test_numbers_are_those_of_the_truth(post: Post) -> None:
    true = {day["date"]: day for day in truth(person("ada"), dt.date(2026, 10, 1), dt.date(2026, 10, 31))}
    activities = post("/v2/measure", {"action": "getactivity", **DAYS, "data_fields": "steps"})["activities"]
    assert {day["date"]: day["steps"] for day in activities} == {
        date: day["steps_recorded"] for date, day in true.items()
    }
    nights = post("/v2/sleep", {"action": "getsummary", **DAYS, "data_fields": ALL_SLEEP})["series"]
    long = {night["date"]: night["data"] for night in nights if night["data"]["total_timeinbed"] > 3 * 3600}
    assert set(long) == {date for date, day in true.items() if day["night_worn"]}
    for date, night in long.items():
        assert night["total_sleep_time"] == true[date]["sleep_seconds"]
        assert night["hr_min"] == true[date]["resting_heart_rate"]
        parts = ("total_sleep_time", "wakeupduration")
        assert sum(night[part] for part in parts) == night["total_timeinbed"]


def test_only_named_values_come(post: Post) -> None:
    bare = post("/v2/measure", {"action": "getactivity", **DAYS})["activities"][0]
    assert "steps" not in bare
    named = post("/v2/measure", {"action": "getactivity", **DAYS, "data_fields": "steps"})["activities"][0]
    assert set(named) - set(bare) == {"steps"}
    weights = post("/measure", {"action": "getmeas", "meastypes": "1", **EPOCHS})["measuregrps"]
    assert {measure["type"] for group in weights for measure in group["measures"]} == {1}


def test_a_guest_and_a_twin_stand_on_the_scale(post: Post) -> None:
    groups = post("/measure", {"action": "getmeas", "meastypes": "1", "lastupdate": "1780000000"})[
        "measuregrps"
    ]
    assert {group["attrib"] for group in groups} == {0, 1, 8}
    ids = [group["grpid"] for group in groups]
    assert 0 < len(ids) - len(set(ids)) < len(ids) / 3


def test_pages_by_offset_give_what_one_page_would(post: Post) -> None:
    form = {"action": "getactivity", "startdateymd": "2026-05-01", "enddateymd": "2026-10-31"}
    found: list[str] = []
    offset = 0
    while True:
        body = post("/v2/measure", {**form, "offset": str(offset)})
        found += [day["date"] for day in body["activities"]]
        if not body["more"]:
            break
        offset = body["offset"]
    assert len(found) == len(set(found)) > 170
    assert (body["more"], post("/measure", {"action": "getmeas", **EPOCHS})["more"]) == (False, 1)


def test_more_than_a_day_is_not_given(post: Post) -> None:
    form = {"action": "getintradayactivity", **EPOCHS, "data_fields": "heart_rate"}
    times = [int(key) for key in post("/v2/measure", form)["series"]]
    start = int(EPOCHS["startdate"])
    assert start <= min(times) < max(times) <= start + 86_400
    assert post("/v2/measure", {**form, "startdate": "4000000000", "enddate": "4000000100"})["series"] == []


def test_nothing_is_later_than_now(post: Post) -> None:
    now = int(NOW.timestamp())
    ahead = {"startdateymd": "2026-11-19", "enddateymd": "2026-12-31"}
    days = post("/v2/measure", {"action": "getactivity", **ahead})["activities"]
    assert [day["date"] for day in days] == ["2026-11-19", "2026-11-20"]
    assert all(row["modified"] <= now for row in days)
    form = {"action": "getintradayactivity", "startdate": str(now - 3600), "enddate": str(now + 3600)}
    assert max(map(int, post("/v2/measure", {**form, "data_fields": "steps,heart_rate"})["series"])) <= now
    nights = post("/v2/sleep", {"action": "getsummary", **ahead})["series"]
    assert max(night["enddate"] for night in nights) <= now


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/v2/measure", {"action": "getactivity"}, 503),
        (
            "/v2/measure",
            {"action": "getactivity", "startdateymd": "1.10.2026", "enddateymd": "2.10.2026"},
            503,
        ),
        ("/v2/measure", {"action": "getactivity", **DAYS, "lastupdate": "1"}, 503),
        ("/measure", {"action": "getmeas", "startdate": "now"}, 503),
        ("/measure", {"action": "getactivity"}, 2554),
        ("/measure", {}, 2554),
    ],
)
def test_bad_requests_are_told_by_status_in_a_200(
    post: Post, path: str, form: dict[str, str], status: int
) -> None:
    assert post(path, form, status=status) == {}


def test_no_token_is_a_401_in_a_200(post: Post, sandbox: RunningSandbox) -> None:
    assert post("/v2/user", {"action": "getdevice"}, status=401, Authorization="Bearer no") == {}


def test_edited_night_is_found_by_what_changed_since(own_sandbox: RunningSandbox) -> None:
    token = own_sandbox.app.state.apis["withings"].oauth.access_token("ada")
    headers = {"Authorization": f"Bearer {token}"}
    since = str(int(NOW.timestamp()))

    def changed() -> list[dict[str, Any]]:
        form = {"action": "getsummary", "lastupdate": since, "data_fields": "total_timeinbed"}
        answer = httpx.post(f"{own_sandbox.url}/withings/v2/sleep", data=form, headers=headers)
        return list(answer.json()["body"]["series"])

    before = {row["id"] for row in changed()}
    order = {"provider": "withings", "handle": "ada", "day": "2026-11-04"}
    edited = httpx.post(f"{own_sandbox.url}/__revise", json=order)
    (sleep_id,) = edited.raise_for_status().json()["revised"]
    (night,) = [row for row in changed() if row["id"] not in before]
    assert (str(night["id"]), night["date"], night["modified"]) == (sleep_id, "2026-11-04", int(since))
    gone = httpx.post(f"{own_sandbox.url}/__revise", json={**order, "kind": "delete"})
    assert gone.status_code == 404


def test_tokens_come_in_a_body_of_the_vendors(own_sandbox: RunningSandbox) -> None:
    with httpx.Client(base_url=f"{own_sandbox.url}/withings", timeout=20) as client:
        asked = {
            "client_id": "sandbox",
            "redirect_uri": REDIRECT,
            "response_type": "code",
            "scope": "user.info,user.metrics",
            "state": "s1",
            "login_hint": "ada",
        }

        def code() -> str:
            answer = client.get("/oauth2_user/authorize2", params=asked)
            return httpx.URL(answer.headers["location"]).params["code"]

        def token(**form: str) -> dict[str, Any]:
            client_is = {"client_id": "sandbox", "client_secret": "sandbox-secret", "redirect_uri": REDIRECT}
            answer = client.post("/v2/oauth2", data={"action": "requesttoken", **client_is, **form})
            assert answer.status_code == 200
            return dict(answer.json())

        first = token(grant_type="authorization_code", code=code())
        body = first["body"]
        assert (first["status"], body["expires_in"], body["scope"]) == (0, 10_800, "user.info,user.metrics")
        assert isinstance(body["userid"], int)
        second = token(grant_type="refresh_token", refresh_token=body["refresh_token"])["body"]
        assert second["refresh_token"] != body["refresh_token"]
        assert second["userid"] == body["userid"]
        assert token(grant_type="refresh_token", refresh_token=body["refresh_token"])["status"] == 503
        assert token(grant_type="authorization_code", code=code(), action="other")["status"] == 503
        late = code()
        own_sandbox.app.state.sandbox.fix_time(NOW + dt.timedelta(seconds=31))
        assert token(grant_type="authorization_code", code=late)["status"] == 503
        wrong = token(grant_type="authorization_code", code=code(), client_secret="wrong")
        assert "client_secret" in wrong["error"]
