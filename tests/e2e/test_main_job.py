"""From a provider's API and a file to scores and forecasts, through Dagster, on real Postgres and S3."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import httpx
import jsonschema
import pytest
from api_client import api_client, bearer
from click.testing import CliRunner
from house import House
from starlette.testclient import TestClient

from health_pipeline.cli import main
from health_pipeline.definitions import defs
from health_pipeline.defs import sources
from health_pipeline.defs.events import requested_jobs_sensor, webhook_sensor
from health_pipeline.ingestion.fetch import ProviderOutageError
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import open_store
from health_pipeline.receiver.app import create_app
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.runtime.demo import connect_people, describe_people
from health_pipeline.runtime.query import QueryError, run_query
from health_pipeline.runtime.run_job import run_job

#: What the first run on an empty warehouse makes is `test_all_derived_tables_can_be_made_again_from_raw`'s.
pytestmark = pytest.mark.built

DAYS = Window(dt.date(2026, 2, 1), dt.date(2026, 3, 5))
TRUTHS = {
    "steps": "steps_recorded",
    "sleep_duration": "sleep_seconds",
    "heart_rate_variability": "hrv",
    "resting_heart_rate": "resting_heart_rate",
}


@pytest.fixture(scope="module")
def loaded(house: House) -> House:
    """Everybody connected and a month fetched."""
    connect_people(house.settings, house.warehouse, get("oura"), house.sandbox.url)
    describe_people(house.warehouse, house.sandbox.url)
    outcome = house.run("sync_oura", DAYS)
    assert outcome.success, outcome.failures
    assert outcome.failed_checks == ()
    return house


def test_what_people_did_is_in_the_warehouse(loaded: House) -> None:
    compared = 0
    for handle, days in _truth(loaded).items():
        stored = {
            (metric, str(day)): value
            for metric, day, value in loaded.rows(
                "select metric_type, local_date, metric_value from health.daily_metrics "
                "inner join ops.users using (user_id) where handle = :handle",
                handle=handle,
            )
        }
        # The date line gives dates two nights; what those become is the canonical tests' matter.
        dates = [day["date"] for day in days]
        for day in days:
            if handle == "chen" or dates.count(day["date"]) > 1:
                continue
            for metric, field in TRUTHS.items():
                if (metric, day["date"]) in stored:
                    assert stored[metric, day["date"]] == pytest.approx(day[field], abs=0.5), (
                        handle,
                        day["date"],
                    )
                    compared += 1
            if day["night_worn"]:
                assert ("sleep_duration", day["date"]) in stored
    assert compared > 4 * 25 * 3


def test_every_row_leads_back_to_bytes(loaded: House) -> None:
    assert loaded.scalar("select count(*) from health.health_metrics") > 30_000
    orphans = (
        "select count(*) from health.health_metrics left join ops.raw_objects using (raw_object_id) "
        "where object_key is null"
    )
    assert loaded.scalar(orphans) == 0
    keys = [str(key) for (key,) in loaded.rows("select object_key from ops.raw_objects")]
    bucket = loaded.settings.raw_location.split("/")[2]
    stored = {
        item["Key"].removeprefix("raw/")
        for page in boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
        for item in page.get("Contents", [])
    }
    assert stored == set(keys)
    # A key outlives its object in a store's logs: it names nobody. ("ada" may well be part of a hash.)
    assert not [key for key in keys for handle in ("ben", "chen", "eli") if handle in key]


def test_training_is_measured_by_the_heart(loaded: House) -> None:
    """Everybody said their sex and year of birth: a run's minutes are Banister's, not a guess by its length."""
    ways = loaded.rows(
        "select load_method, count(*), min(banister_trimp), min(heart_rate_share) from health.training_loads "
        "where workout_count > 0 group by 1"
    )
    by_heart = {way: numbers for way, *numbers in ways}
    days, least, share = by_heart["banister"]
    assert days > 20 and least > 0 and share >= 0.5
    assert days > sum(numbers[0] for numbers in by_heart.values()) / 2


def test_everybody_has_a_score_and_a_forecast(loaded: House) -> None:
    scored = loaded.rows("select user_id, method, count(*) from health.recovery_scores group by 1, 2")
    assert {user for user, method, _ in scored if method == "calibrated"} == {
        user for (user,) in loaded.rows("select user_id from ops.users")
    }
    assert loaded.scalar("select count(*) from health.baselines where n_days < 14") == 0
    assert loaded.scalar("select count(*) from health.forecasts where slope_per_day is not null") >= 15


def test_the_same_days_again_change_nothing(loaded: House) -> None:
    objects = loaded.scalar("select count(*) from ops.raw_objects")
    staged = loaded.scalar("select count(*) from staging_oura.heartrate")
    hashes = loaded.table_hashes()
    outcome = loaded.run("sync_oura", DAYS)
    assert outcome.success
    assert loaded.scalar("select count(*) from ops.raw_objects") == objects
    assert loaded.scalar("select count(*) from staging_oura.heartrate") == staged
    assert loaded.table_hashes() == hashes


def test_all_derived_tables_can_be_made_again_from_raw(loaded: House) -> None:
    """Also after the worker was killed in the middle of the load that makes them."""
    hashes = loaded.table_hashes()
    assert hashes["health_metrics"][0] > 30_000
    loaded.drop_everything_derived()
    # The provider is not asked: its API is away.
    httpx.post(
        f"{loaded.sandbox.url}/__faults", json={"provider": "oura", "kind": "unauthorized"}
    ).raise_for_status()
    worker = subprocess.Popen(
        [sys.executable, "-c", _STAGE],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline().strip() == "loading"
    time.sleep(0.7)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert loaded.table_hashes() == {}
    # What a data engineer does in the UI: materialise staging and all that follows.
    outcome = run_job("sync_oura", DAYS, loaded.settings, loaded.warehouse, without=["raw"])
    assert outcome.success, outcome.failures
    assert loaded.table_hashes() == hashes
    httpx.delete(f"{loaded.sandbox.url}/__faults").raise_for_status()


def test_a_night_revised_by_the_provider_is_revised_here(loaded: House) -> None:
    day = loaded.scalar(
        "select max(local_date)::text from health.sleep_sessions inner join ops.users using (user_id) "
        "where handle = 'ada' and is_main_sleep and local_date <= :last",
        last=DAYS.end - dt.timedelta(days=1),
    )
    query = (
        "select metric_value from health.daily_metrics inner join ops.users using (user_id) "
        "where handle = 'ada' and metric_type = 'sleep_duration' and local_date = :day"
    )
    before = loaded.scalar(query, day=day)
    nights = loaded.scalar("select count(*) from health.sleep_sessions")
    revision = {"provider": "oura", "handle": "ada", "day": day, "kind": "edit"}
    httpx.post(f"{loaded.sandbox.url}/__revise", json=revision).raise_for_status()
    assert loaded.run("sync_oura", Window(DAYS.end, DAYS.end)).success
    after = loaded.scalar(query, day=day)
    assert after != before
    assert loaded.scalar("select count(*) from health.sleep_sessions") == nights
    duplicates = (
        "select count(*) from (select user_id, metric_type, local_date from health.health_metrics "
        "where metric_type = 'sleep_duration' and user_id = (select user_id from ops.users where handle = 'ada') "
        "group by 1, 2, 3 having count(*) > 1) as twice"
    )
    assert loaded.scalar(duplicates) == 0


def test_a_file_goes_the_same_way(loaded: House, tmp_path: Path) -> None:
    file = tmp_path / "readings.csv"
    file.write_text(
        "timestamp,glucose (mg/dL)\n"
        "2026-03-01 08:00:00,100\n"
        "2026-03-01 08:05:00,104\n"
        "2026-03-01 08:10:00,9000\n"  # impossible
        "2026-03-01 08:15:00,many\n"  # not a number
        "2026-02-30 08:20:00,110\n"  # not a day
        "2026-03-01 08:25:00,112\n"
    )
    done = loaded.command("upload", str(file), "--user", "fay", "--timezone", "Europe/Berlin")
    assert done.returncode == 0, done.stderr
    assert "6 records read, 3 in the warehouse" in done.stdout
    assert "line 4" in done.stdout
    assert "line 5" in done.stdout
    assert "line 6" in done.stdout
    assert loaded.rows(
        "select recorded_at, glucose_mg_dl, utc_offset_minutes, local_date from health.glucose_readings "
        "inner join ops.users using (user_id) where handle = 'fay' order by 1"
    )[0] == (dt.datetime(2026, 3, 1, 7, 0, tzinfo=dt.UTC), 100.0, 60, dt.date(2026, 3, 1))
    again = CliRunner().invoke(main, ["upload", str(file), "--user", "fay"])
    assert again.exit_code == 0, again.output
    assert "uploaded before; nothing was added" in again.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02\x03" * 400, "known kinds"),
        (b"timestamp,glucose\n", "no rows"),
    ],
    ids=["empty", "binary", "header only"],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    loaded: House, tmp_path: Path, content: bytes, message: str
) -> None:
    objects = loaded.scalar("select count(*) from ops.raw_objects")
    file = tmp_path / "file"
    file.write_bytes(content)
    done = loaded.command("upload", str(file), "--user", "gus", "--timezone", "UTC")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert loaded.scalar("select count(*) from ops.raw_objects") == objects


def test_queries_are_read_only_and_a_subject_sees_only_their_own(loaded: House) -> None:
    people = "select count(distinct user_id) from health.health_metrics"
    assert loaded.command("query", people, "--format", "csv").stdout == "count\n6\n"
    assert loaded.command("query", people, "--format", "csv", "--as-user", "ben").stdout == "count\n1\n"
    for statement in (
        "delete from health.health_metrics",
        "create table health.mine (a int)",
        "select 1; drop table health.workouts",
        "set transaction read write",
    ):
        # What the database does not refuse as a statement changes nothing.
        with contextlib.suppress(QueryError):
            run_query(loaded.warehouse, statement)
    assert loaded.scalar("select count(*) from health.workouts") > 0
    twice = run_query(loaded.warehouse, "select count(*), count(distinct 1), 3 as count_2")
    assert twice.to_pylist() == [{"count": 1, "count_3": 1, "count_2": 3}]
    denied = loaded.command("query", "select * from ops.connector_tokens", "--as-user", "ben")
    assert denied.returncode == 1
    assert "permission denied" in denied.stderr
    with pytest.raises(LookupError, match="there is no user 'nobody'"):
        run_query(loaded.warehouse, "select 1", as_user="nobody")


@pytest.mark.parametrize(
    ("what", "table", "limit"),
    [
        ("daily", "health.daily_metrics", 100),
        ("summary", "health.health_summary", 7),
        ("sleep", "health.sleep_sessions", 5),
        ("workouts", "health.workouts", 3),
        ("recovery", "health.recovery_scores", 4),
        ("forecasts", "health.forecasts", 2),
    ],
)
def test_a_person_reads_their_own_rows_over_http(loaded: House, what: str, table: str, limit: int) -> None:
    rows: list[dict[str, Any]] = []
    with api_client(loaded.settings, loaded.warehouse) as client:
        mine = bearer(loaded.warehouse, "ben", ["read"])
        described = client.get("/openapi.json").json()
        answers = described["paths"][f"/v1/health/{{user}}/{what}"]["get"]["responses"]
        schema = {**described, **answers["200"]["content"]["application/json"]["schema"]}
        query: dict[str, Any] = {"limit": limit, "start": DAYS.start, "end": DAYS.end}
        if what in ("summary", "forecasts"):
            query = {"limit": limit}
        while True:
            answer = client.get(f"/v1/health/ben/{what}", params=query, headers=mine)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            jsonschema.validate(page, schema)
            assert len(page["data"]) <= limit
            known = {**mine, "If-None-Match": answer.headers["etag"]}
            assert client.get(f"/v1/health/ben/{what}", params=query, headers=known).status_code == 304
            rows += page["data"]
            if page["next_cursor"] is None:
                break
            query = {"limit": limit, "cursor": page["next_cursor"]}
    days = "" if what in ("summary", "forecasts") else "and local_date between :start and :end"
    method = "and method = 'calibrated'" if what == "recovery" else ""
    stored = loaded.rows(
        f"select to_jsonb(t) from {table} as t inner join ops.users using (user_id) "
        f"where handle = 'ben' {days} {method}",
        start=DAYS.start,
        end=DAYS.end,
    )
    assert len(rows) == len(stored) > limit
    plain = [
        name for name, value in rows[0].items() if isinstance(value, (int, float, str)) and "_at" not in name
    ]
    plain = [name for name in plain if name in stored[0][0]]
    assert len(plain) > 4
    told = [tuple(row[name] for name in plain) for row in rows]
    assert sorted(told, key=repr) == sorted(
        (tuple(row[name] for name in plain) for (row,) in stored), key=repr
    )


def test_a_file_sent_over_http_is_read_by_the_run_that_is_asked_for(loaded: House) -> None:
    content = b"timestamp,glucose (mg/dL)\n2026-03-02 08:00:00,100\n2026-03-02 08:05:00,9000\n"
    with api_client(loaded.settings, loaded.warehouse) as client:
        mine = bearer(loaded.warehouse, "hal")
        sent = client.post("/v1/uploads", headers=mine, files={"file": content})
        assert sent.status_code == 202, sent.text
        location = sent.headers["location"]
        with dg.DagsterInstance.ephemeral() as instance:
            (request,) = list(requested_jobs_sensor(dg.build_sensor_context(instance=instance)) or [])
        assert isinstance(request, dg.RunRequest)
        day = dt.date.fromisoformat(str(request.partition_key))
        outcome = run_job(
            str(request.job_name),
            Window(day, day),
            loaded.settings,
            loaded.warehouse,
            run_config=request.run_config,
        )
        assert outcome.success, outcome.failures
        job = client.get(location, headers=mine).json()
        readings = client.get("/v1/health/hal/glucose?start=2026-03-01&end=2026-03-03", headers=mine).json()
    assert (job["status"], job["last_error"], job["kind"]) == ("done", None, "upload")
    report = job["file"]
    assert (report["kind"], report["known"], report["records_read"], report["in_warehouse"]) == (
        "glucose_csv",
        False,
        2,
        1,
    )
    assert [(one["reason"], one["count"], one["places"]) for one in report["quarantined"]] == [
        ("out_of_range", 1, ["line 3"])
    ]
    assert report["zone_rules"] == {"upload_zone": 1}
    (reading,) = readings["data"]
    assert (reading["recorded_at"], reading["glucose_mg_dl"], reading["utc_offset_minutes"]) == (
        "2026-03-02T07:00:00Z",
        100.0,
        60,
    )
    assert readings["time_zone"] == "Europe/Berlin"


def test_status_says_what_is_there(loaded: House) -> None:
    done = loaded.command("status")
    assert done.returncode == 0, done.stdout
    assert "ada" in done.stdout
    assert "oura" in done.stdout


def run_events(house: House) -> None:
    """A tick of the sensor, and the runs that it asks for."""
    repository = defs.get_repository_def()
    with dg.DagsterInstance.get() as instance:
        context = dg.build_sensor_context(instance=instance, repository_def=repository)
        for request in webhook_sensor.evaluate_tick(context).run_requests or []:
            result = defs.resolve_job_def("webhook_events").execute_in_process(
                instance=instance,
                asset_selection=request.asset_selection,
                run_config=request.run_config,
                partition_key=request.partition_key,
                raise_on_error=False,
            )
            assert result.success


def test_notices_in_any_order_bring_what_is_true_in_the_end(loaded: House) -> None:
    """Nights are revised and deleted at the provider; only its notices tell us, each up to 50 times, many at once.

    Between the two halves a run takes what is there, and the receiver is another.
    """
    chance = random.Random(20260310)
    oura, secrets = loaded.sandbox.app.state.apis["oura"], Secrets(loaded.settings)
    days = [DAYS.end - dt.timedelta(days=6 + number) for number in range(4)]
    told = []
    for day, kinds in zip(days, (["edit"], ["edit", "edit"], ["edit", "delete"], ["delete"]), strict=True):
        for kind in kinds:
            revision = {"provider": "oura", "handle": "ben", "day": str(day), "kind": kind}
            httpx.post(f"{loaded.sandbox.url}/__revise", json=revision).raise_for_status()
            calls = oura.webhooks("ben", day, secrets.of(get("oura"))[0])
            told += [call for call in calls if b'"data_type":"sleep"' in call.body]
    deliveries = [call for call in told for _ in range(chance.randint(1, 50))]
    chance.shuffle(deliveries)
    half = len(deliveries) // 2
    for part in (deliveries[:half], deliveries[half:]):
        app = create_app(loaded.warehouse.engine, open_store(loaded.settings.raw_location), secrets.of)
        with TestClient(app) as receiver, ThreadPoolExecutor(16) as vendors:
            answers = vendors.map(
                lambda call, receiver=receiver: receiver.post(
                    "/webhooks/oura", content=call.body, headers=dict(call.headers)
                ),
                part,
            )
            assert {answer.status_code for answer in answers} == {200}
        run_events(loaded)
    different = len({call.body for call in told})
    assert len(deliveries) > 100 > 2 * different
    # The same words after a run has taken them may tell of another change: they are worked on once more.
    kept = loaded.scalar("select count(*) from ops.webhook_events where event_type like 'sleep%'")
    assert different <= int(str(kept)) <= 2 * different
    assert loaded.scalar("select count(*) from ops.webhook_events where state <> 'processed'") == 0

    answered = {
        (day, document.payload["total_sleep_duration"])
        for day in days
        for document in oura._documents["ben"].kinds()["sleep"](day)
        if document.payload["type"] == "long_sleep"
    }
    assert {day for day, _ in answered} == set(days[:2]), "two nights were deleted"
    for table in ("health_metrics", "daily_metrics"):
        stored = loaded.rows(
            f"select local_date, metric_value from health.{table} inner join ops.users using (user_id) "
            "where handle = 'ben' and metric_type = 'sleep_duration' and local_date = any(:days)",
            days=days,
        )
        assert sorted(stored) == sorted(answered), table
    sessions = loaded.rows(
        "select local_date from health.sleep_sessions inner join ops.users using (user_id) "
        "where handle = 'ben' and is_main_sleep and local_date = any(:days)",
        days=days,
    )
    assert sorted(day for (day,) in sessions) == sorted(days[:2])


def test_one_revoked_account_and_one_outage_do_not_stop_the_others(
    loaded: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx.post(
        f"{loaded.sandbox.url}/__revoke", json={"provider": "oura", "handle": "eli"}
    ).raise_for_status()
    fetch = sources._fetch

    def outage_of_whoop(context: object, config: object, platform: object, provider: Provider) -> object:
        if provider.name == "whoop":
            raise ProviderOutageError("WHOOP answers nobody")
        return fetch(context, config, platform, provider)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "_fetch", outage_of_whoop)
    monkeypatch.setattr(sources, "_RETRIES", 0)
    outcome = loaded.run("daily_refresh", Window(dt.date(2026, 3, 6), dt.date(2026, 3, 6)))
    assert outcome.success
    assert {"raw/oura: accounts_healthy", "raw/whoop: provider_answers"} <= set(outcome.failed_checks)
    last = dict(
        loaded.rows(
            "select handle, max(local_date) from health.daily_metrics inner join ops.users using (user_id) "
            "where metric_type = 'steps' group by 1"
        )
    )
    assert last["dana"] == dt.date(2026, 3, 6)
    assert last["eli"] < dt.date(2026, 3, 6)
    done = loaded.command("status")
    assert done.returncode == 1
    assert "connect Oura again" in " ".join(done.stdout.split())


_STAGE = """
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import open_store
from health_pipeline.settings import load_settings
from health_pipeline.staging.load import stage
from health_pipeline.warehouse.connection import open_warehouse
warehouse = open_warehouse()
store = open_store(load_settings().raw_location)
import dlt
print("loading", flush=True)
stage(warehouse, store, get("oura"))
"""


def _truth(house: House) -> dict[str, list[dict[str, object]]]:
    people = httpx.get(f"{house.sandbox.url}/__people").json()["people"]
    span = {"start": str(DAYS.start), "end": str(DAYS.end)}
    return {
        person["handle"]: httpx.get(
            f"{house.sandbox.url}/__truth/{person['handle']}", params=span, timeout=60
        ).json()["days"]
        for person in people
    }
