"""The Oura API of the sandbox against the vendor's description and its known quirks."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sandbox_client import NOW, Connect, shared_folder

from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.sandbox.truth import truth

DATA = "/oura/v2/usercollection"
MODELS = {
    "daily_activity": "PublicDailyActivity",
    "daily_cardiovascular_age": "PublicDailyCardiovascularAge",
    "daily_readiness": "PublicDailyReadiness",
    "daily_resilience": "DailyResilienceModel",
    "daily_sleep": "PublicDailySleep",
    "daily_spo2": "PublicDailySpO2",
    "daily_stress": "PublicDailyStress",
    "sleep": "PublicModifiedSleepModel",
    "vO2_max": "PublicVO2Max",
    "workout": "PublicWorkout",
    "heartrate": "PublicHeartRateRow",
}
DOCUMENTS = [kind for kind in MODELS if kind != "heartrate"]
PEOPLE = ["ada", "ben", "chen", "dana", "eli"]


def all_pages(client: httpx.Client, kind: str, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get(f"{DATA}/{kind}", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert list(page) == ["data", "next_token"]
        found += page["data"]
        if page["next_token"] is None:
            return found
        query["next_token"] = page["next_token"]


def days_of(client: httpx.Client, kind: str, **query: str) -> list[str]:
    return [document["day"] for document in all_pages(client, kind, **query)]


@pytest.fixture
def ada(sandbox: RunningSandbox, connect: Connect) -> httpx.Client:
    return connect(sandbox, "ada")


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    path = shared_folder() / "providers" / "specs" / "oura.json"
    if not path.exists():
        pytest.skip(f"the vendor's description is not here: {path}")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def assert_fits(spec: dict[str, Any], model: str, records: list[dict[str, Any]]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = {"$ref": f"#/components/schemas/{model}", "components": spec["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    fields = set(spec["components"]["schemas"][model]["properties"])
    for record in records:
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(record)]
        assert not problems
        assert set(record) == fields, (model, set(record) ^ fields)


@pytest.mark.parametrize("handle", PEOPLE)
def test_every_document_fits_the_vendors_description(
    sandbox: RunningSandbox, connect: Connect, spec: dict[str, Any], handle: str
) -> None:
    client = connect(sandbox, handle)
    for kind, model in MODELS.items():
        if kind == "heartrate":
            query = {"start_datetime": "2026-10-20T00:00:00Z", "end_datetime": "2026-11-10T00:00:00Z"}
        else:
            query = {"start_date": "2026-10-01", "end_date": "2026-11-14"}
        records = all_pages(client, kind, **query)
        assert len(records) > (2 if kind == "vO2_max" else 8), kind
        assert_fits(spec, model, records)
    assert_fits(spec, "PersonalInfoResponse", [client.get(f"{DATA}/personal_info").json()])


def test_documents_have_the_fields_of_recorded_ones(ada: httpx.Client) -> None:
    folder = shared_folder() / "data" / "oura_v2"
    if not folder.exists():
        pytest.skip(f"recorded answers are not here: {folder}")
    for kind in DOCUMENTS:
        path = folder / f"{ {'daily_spo2': 'daily_sp02', 'vO2_max': 'vo2_max'}.get(kind, kind) }.json"
        recorded = json.loads(path.read_text())["data"][-1]
        ours = all_pages(ada, kind, start_date="2026-10-01", end_date="2026-11-01")[-1]
        assert set(recorded) - {"timestamp"} <= set(ours), kind


def test_numbers_are_those_of_the_truth(ada: httpx.Client) -> None:
    start, end = dt.date(2026, 9, 1), dt.date(2026, 9, 30)
    true = {day["date"]: day for day in truth(person("ada"), start, end)}
    window = {"start_date": "2026-08-31", "end_date": "2026-09-30T23:59:59"}
    activity = {d["day"]: d for d in all_pages(ada, "daily_activity", **window) if d["day"] in true}
    assert len(activity) == 30
    for day, document in activity.items():
        assert document["steps"] == true[day]["steps_recorded"]
    nights = {d["day"]: d for d in all_pages(ada, "sleep", **window) if d["type"] == "long_sleep"}
    assert set(nights) == {day for day, t in true.items() if t["night_worn"]}
    for day, night in nights.items():
        assert night["lowest_heart_rate"] == true[day]["resting_heart_rate"]
        assert night["average_hrv"] == true[day]["hrv"]
        assert night["total_sleep_duration"] == true[day]["sleep_seconds"]
        assert (night["bedtime_start"], night["bedtime_end"]) == (
            true[day]["bedtime_start"],
            true[day]["bedtime_end"],
        )


def test_parts_of_a_document_add_up(sandbox: RunningSandbox, connect: Connect) -> None:
    client = connect(sandbox, "eli")
    for day in all_pages(client, "daily_activity", start_date="2026-06-01", end_date="2026-08-01"):
        parts = ("high_activity", "medium_activity", "low_activity", "sedentary", "resting", "non_wear")
        assert sum(day[f"{part}_time"] for part in parts) == 86_400
        assert len(day["met"]["items"]) == 1440
        assert len(day["class_5_min"]) == 288
        assert set(day["class_5_min"]) <= set("012345")
        assert day["total_calories"] > day["active_calories"] >= 0
    sleeps = all_pages(client, "sleep", start_date="2026-06-01", end_date="2026-08-01")
    for sleep in sleeps:
        phases = sleep["sleep_phase_30_sec"]
        for digit, name in (("1", "deep"), ("2", "light"), ("3", "rem")):
            assert 30 * phases.count(digit) == sleep[f"{name}_sleep_duration"]
        asleep = sum(sleep[f"{name}_sleep_duration"] for name in ("deep", "light", "rem"))
        assert asleep == sleep["total_sleep_duration"] == sleep["time_in_bed"] - sleep["awake_time"]
    kinds = {sleep["type"] for sleep in sleeps}
    assert kinds == {"long_sleep", "sleep", "late_nap", "rest"}
    assert {sleep["lowest_heart_rate"] for sleep in sleeps if sleep["type"] == "rest"} == {255}
    assert len({sleep["id"] for sleep in sleeps}) == len(sleeps)


def test_a_sleep_in_the_evening_counts_for_the_next_day(sandbox: RunningSandbox, connect: Connect) -> None:
    client = connect(sandbox, "eli")
    sleeps = all_pages(client, "sleep", start_date="2026-06-01", end_date="2026-08-01")
    rests = [sleep for sleep in sleeps if sleep["type"] == "rest"]
    assert len(rests) > 2
    for rest in rests:
        ended = dt.datetime.fromisoformat(rest["bedtime_end"]).date()
        assert rest["day"] == str(ended + dt.timedelta(days=1))
        assert rest["period"] == 0
        assert rest["heart_rate"] is None
    naps = [sleep for sleep in sleeps if sleep["type"] in ("sleep", "late_nap")]
    assert naps
    assert all(nap["day"] == nap["bedtime_end"][:10] for nap in naps)


def test_sleep_samples_are_the_heart_rate_series(ada: httpx.Client) -> None:
    night = next(d for d in all_pages(ada, "sleep", start_date="2026-09-09", end_date="2026-09-11"))
    start = dt.datetime.fromisoformat(night["bedtime_start"])
    series = all_pages(
        ada, "heartrate", start_datetime=night["bedtime_start"], end_datetime=night["bedtime_end"]
    )
    by_time = {row["timestamp"]: row["bpm"] for row in series if row["source"] == "sleep"}
    expected = {
        (start + dt.timedelta(seconds=300 * n)).astimezone(dt.UTC).isoformat(): bpm
        for n, bpm in enumerate(night["heart_rate"]["items"])
        if bpm is not None
    }
    assert by_time == expected


def test_heart_rate_pages_join_without_loss(ada: httpx.Client) -> None:
    window = {"start_datetime": "2026-09-01T00:00:00", "end_datetime": "2026-10-01T00:00:00"}
    first = ada.get(f"{DATA}/heartrate", params=window).json()
    assert len(first["data"]) == 1000
    assert first["next_token"]
    rows = all_pages(ada, "heartrate", **window)
    times = [row["timestamp_unix"] for row in rows]
    assert 6000 < len(rows) < 12_000
    assert times == sorted(set(times))
    for row in rows[:50]:
        assert dt.datetime.fromisoformat(row["timestamp"]).timestamp() * 1000 == row["timestamp_unix"]
        assert row["timestamp"].endswith("+00:00")
    # London is an hour ahead of UTC, and dates without offset are the person's.
    assert min(times) >= dt.datetime(2026, 8, 31, 23, tzinfo=dt.UTC).timestamp() * 1000
    one_day = all_pages(
        ada, "heartrate", start_datetime="2026-09-10T00:00:00+01:00", end_datetime="2026-09-10T23:59:59+01:00"
    )
    assert one_day == [row for row in rows if "2026-09-09T23" <= row["timestamp"] < "2026-09-10T23"]


def test_the_answer_does_not_depend_on_the_size_of_the_page(connect: Connect, ada: httpx.Client) -> None:
    with run_in_thread(now=lambda: NOW, page_size=77, document_page_size=3) as small:
        client = connect(small, "ada")
        window = {"start_datetime": "2026-09-01", "end_datetime": "2026-09-03"}
        assert all_pages(client, "heartrate", **window) == all_pages(ada, "heartrate", **window)
        for kind in ("sleep", "workout", "daily_activity"):
            days = {"start_date": "2026-09-01", "end_date": "2026-09-20"}
            assert len(client.get(f"{DATA}/{kind}", params=days).json()["data"]) == 3
            assert all_pages(client, kind, **days) == all_pages(ada, kind, **days)


def test_bytes_do_not_depend_on_today_nor_on_the_range(connect: Connect, ada: httpx.Client) -> None:
    later = NOW + dt.timedelta(days=200)
    with run_in_thread(now=lambda: later) as sandbox:
        client = connect(sandbox, "ada")
        for kind in MODELS:
            names = ("start_datetime", "end_datetime") if kind == "heartrate" else ("start_date", "end_date")
            week = dict(zip(names, ("2026-11-01", "2026-11-08"), strict=True))
            then = ada.get(f"{DATA}/{kind}", params=week)
            now = client.get(f"{DATA}/{kind}", params=week)
            assert then.content == now.content, kind
            wide = all_pages(client, kind, **dict(zip(names, ("2026-10-20", "2026-11-09"), strict=True)))
            assert all(record in wide for record in then.json()["data"]), kind


def test_a_bare_end_date_leaves_that_day_out(ada: httpx.Client) -> None:
    for kind in ("daily_activity", "daily_stress"):
        bare = days_of(ada, kind, start_date="2026-09-01", end_date="2026-09-04")
        assert bare == ["2026-09-01", "2026-09-02", "2026-09-03"]
        timed = days_of(ada, kind, start_date="2026-09-01", end_date="2026-09-04T23:59:59")
        assert timed == [*bare, "2026-09-04"]
        assert days_of(ada, kind, start_date="2026-09-04", end_date="2026-09-04") == []


def test_sleep_leaves_the_start_day_out(ada: httpx.Client) -> None:
    found = days_of(ada, "sleep", start_date="2026-09-01", end_date="2026-09-04T23:59:59")
    assert sorted(set(found)) == ["2026-09-02", "2026-09-03", "2026-09-04"]
    assert "2026-09-01" in days_of(ada, "sleep", start_date="2026-08-31", end_date="2026-09-02")


def test_times_carry_the_offset_of_where_the_person_was(sandbox: RunningSandbox, connect: Connect) -> None:
    client = connect(sandbox, "ben")
    window = {"start_date": "2026-08-23", "end_date": "2026-08-31T23:59:59"}
    starts = {d["day"]: d["timestamp"] for d in all_pages(client, "daily_activity", **window)}
    assert starts["2026-08-24"] == "2026-08-24T04:00:00+02:00"
    assert starts["2026-08-25"] == "2026-08-25T04:00:00-04:00"
    assert starts["2026-08-30"] == "2026-08-30T04:00:00+02:00"
    nights = {d["day"]: d for d in all_pages(client, "sleep", **window) if d["type"] == "long_sleep"}
    assert nights["2026-08-25"]["bedtime_end"].endswith("-04:00")
    assert nights["2026-08-30"]["bedtime_start"].endswith("-04:00")
    assert nights["2026-08-30"]["bedtime_end"].endswith("+02:00")
    readiness = all_pages(client, "daily_readiness", **window)
    assert {d["timestamp"][10:] for d in readiness} == {"T00:00:00+00:00"}


def test_missing_nights_have_no_documents(ada: httpx.Client) -> None:
    true = truth(person("ada"), dt.date(2026, 6, 1), dt.date(2026, 10, 30))
    missing = {day["date"] for day in true if not day["night_worn"]}
    assert missing
    window = {"start_date": "2026-05-31", "end_date": "2026-10-30T23:59:59"}
    for kind in ("daily_sleep", "daily_readiness", "daily_spo2"):
        assert not missing & set(days_of(ada, kind, **window))
    main = [d["day"] for d in all_pages(ada, "sleep", **window) if d["type"] == "long_sleep"]
    assert not missing & set(main)
    assert len(main) == len(true) - len(missing)


@pytest.mark.parametrize(
    ("local", "nights", "activities"),
    [
        ("03:30", "2026-10-14", "2026-10-13"),
        ("04:30", "2026-10-14", "2026-10-14"),
        ("12:00", "2026-10-15", "2026-10-14"),
        ("23:59", "2026-10-15", "2026-10-14"),
    ],
)
def test_nothing_is_there_before_it_happened(
    connect: Connect, local: str, nights: str, activities: str
) -> None:
    now = dt.datetime.fromisoformat(f"2026-10-15T{local}:00+01:00")
    with run_in_thread(now=lambda: now) as sandbox:
        client = connect(sandbox, "ada")
        window = {"start_date": "2026-10-10", "end_date": "2026-10-20T00:00:00"}
        assert days_of(client, "sleep", **window)[-1] == nights
        assert days_of(client, "daily_readiness", **window)[-1] == nights
        assert days_of(client, "daily_activity", **window)[-1] == activities
        rows = all_pages(client, "heartrate", start_datetime="2026-10-14", end_datetime="2026-10-20")
        assert dt.datetime.fromisoformat(rows[-1]["timestamp"]) <= now
        latest = client.get(f"{DATA}/heartrate", params={"latest": "true"}).json()
        assert latest == {"data": rows[-1:], "next_token": None}


def test_a_document_by_its_id(ada: httpx.Client) -> None:
    for kind in DOCUMENTS:
        document = all_pages(ada, kind, start_date="2026-09-01", end_date="2026-10-01")[0]
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["id"])
        assert ada.get(f"{DATA}/{kind}/{document['id']}").json() == document
    unknown = ada.get(f"{DATA}/sleep/00000000-0000-0000-0000-000000000000")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Document not found."})


def test_nobody_reads_anothers_document(sandbox: RunningSandbox, connect: Connect, ada: httpx.Client) -> None:
    document = all_pages(ada, "sleep", start_date="2026-09-01", end_date="2026-09-05")[0]
    assert connect(sandbox, "ben").get(f"{DATA}/sleep/{document['id']}").status_code == 404


def test_fields_project(ada: httpx.Client) -> None:
    rows = all_pages(ada, "daily_sleep", start_date="2026-09-01", end_date="2026-09-05", fields="day,score")
    assert {tuple(row) for row in rows} == {("id", "day", "score")}


@pytest.mark.parametrize("field", ["start_date", "end_date"])
def test_a_bad_date_is_422(ada: httpx.Client, field: str) -> None:
    answer = ada.get(f"{DATA}/sleep", params={field: "yesterday"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", field]


def test_bad_ranges_are_400(ada: httpx.Client) -> None:
    upside_down = ada.get(f"{DATA}/sleep", params={"start_date": "2026-09-05", "end_date": "2026-09-01"})
    assert upside_down.status_code == 400
    assert "Start time is greater than end time" in upside_down.json()["detail"]
    query = {"start_datetime": "2026-09-01T00:00:00Z", "end_datetime": "2026-10-01T00:00:01Z"}
    long = ada.get(f"{DATA}/heartrate", params=query)
    assert (long.status_code, "30 days" in long.json()["detail"]) == (400, True)
    assert ada.get(f"{DATA}/sleep", params={"next_token": "junk"}).status_code == 400


def test_a_bare_plus_in_an_offset_is_a_space(ada: httpx.Client) -> None:
    answer = ada.get(f"{DATA}/heartrate?start_datetime=2026-09-01T00:00:00+01:00")
    assert answer.status_code == 422


def test_scopes_gate_routes(sandbox: RunningSandbox, connect: Connect) -> None:
    client = connect(sandbox, "ada", "daily")
    assert client.get(f"{DATA}/sleep").status_code == 200
    refused = client.get(f"{DATA}/workout")
    assert (refused.status_code, list(refused.json())) == (403, ["status", "title", "detail"])
    assert client.get(f"{DATA}/heartrate").status_code == 403
    assert client.get(f"{DATA}/daily_spo2").status_code == 403
    assert client.get(f"{DATA}/vO2_max").status_code == 401
    info = client.get(f"{DATA}/personal_info").json()
    assert info.pop("id") == person("ada").uuid("oura", "user")
    assert set(info.values()) == {None}
    assert client.get(f"{DATA}/moon").status_code == 404


def test_without_a_token_401(sandbox: RunningSandbox, connect: Connect) -> None:
    for kind in [*MODELS, "personal_info", "sleep/x"]:
        answer = connect(sandbox).get(f"{DATA}/{kind}")
        assert (answer.status_code, answer.json()["status"]) == (401, 401)


@pytest.fixture
def profile(ada: httpx.Client) -> Iterator[dict[str, Any]]:
    yield ada.get(f"{DATA}/personal_info").json()


def test_the_profile_is_of_the_person(profile: dict[str, Any]) -> None:
    assert profile | {"id": ""} == {
        "id": "",
        "age": 35,
        "weight": 61.5,
        "height": 1.68,
        "biological_sex": "female",
        "email": "ada@sandbox.example",
    }
