"""`health-pipeline backfill` and `sync` as a person uses them, and as a machine that dies has it."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path

import httpx
import pytest
from connecting import calm, connect, order, sandbox_endpoint
from house import House

from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.ingestion import jobs
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import open_store

#: Dagster notes each asset and day by itself before a run, which is most of the time of such a test.
DAYS = Window(dt.date(2026, 2, 26), dt.date(2026, 3, 5))
COMMAND = ("backfill", "oura", "--user", "ada", "--from", str(DAYS.start), "--to", str(DAYS.end))


@pytest.fixture(scope="module")
def connected(house: House) -> House:
    endpoint = sandbox_endpoint(house.sandbox.url, house.settings)
    vault = open_vault(house.settings)
    connect(house.warehouse, vault, endpoint, "ada")
    with house.warehouse.engine.begin() as connection:
        ensure_user(connection, "walt")
    return house


def requests(house: House) -> Counter[str]:
    rows = httpx.get(f"{house.sandbox.url}/__requests").raise_for_status().json()["requests"]
    return Counter({row["path"]: row["count"] for row in rows if "usercollection" in row["path"]})


def objects(house: House) -> set[tuple[object, ...]]:
    return set(house.rows("select entity, sha256, partition_start, partition_end from ops.raw_objects"))


def slowed_down(house: House) -> bool:
    faults = httpx.get(f"{house.sandbox.url}/__faults").raise_for_status().json()["faults"]
    return any(fault["hits"] for fault in faults)


def undisturbed(house: House, folder: Path) -> tuple[Counter[str], set[tuple[object, ...]]]:
    """What a backfill that nobody kills asks for, and what it keeps; then forgotten."""
    user = house.scalar("select user_id from ops.users where handle = 'ada'")
    assert isinstance(user, int)
    job = jobs.create(house.warehouse.engine, "backfill", "oura", user, DAYS)
    report = fetch(
        house.warehouse,
        open_store(str(folder)),
        open_vault(house.settings),
        house.settings,
        get("oura"),
        DAYS,
        user_ids=[user],
        job=job,
    )
    assert report.failed == []
    asked, kept = requests(house), objects(house)
    with house.warehouse.engine.begin() as connection:
        connection.exec_driver_sql(
            "truncate ops.raw_objects, ops.fetched_windows, ops.ingestion_jobs cascade"
        )
    calm(house.sandbox.url)
    return asked, kept


@pytest.mark.slow
def test_a_backfill_that_was_killed_goes_on_where_it_was(connected: House, tmp_path: Path) -> None:
    asked, kept = undisturbed(connected, tmp_path)
    order(connected.sandbox.url, "slow", path_contains="heartrate", delay=600.0, count=None)
    connected.kill(*COMMAND, when=lambda: slowed_down(connected))
    ((status, done, total),) = connected.rows(
        "select status, windows_done, windows_total from ops.ingestion_jobs"
    )
    assert status == "running"
    assert isinstance(done, int)
    assert isinstance(total, int)
    assert 0 < done < total
    assert objects(connected) < kept
    finished = requests(connected)
    httpx.delete(f"{connected.sandbox.url}/__faults").raise_for_status()

    resumed = connected.command(*COMMAND, timeout=400)
    assert resumed.returncode == 0, resumed.stderr
    assert f"was interrupted: {done} of {total} windows were raw" in resumed.stderr
    assert f"{total} of {total} windows ({done} were raw already)" in resumed.stdout
    # No finished window was asked for again, and the rest once.
    again = requests(connected) - finished
    assert finished.total() >= done
    assert not set(again) & set(finished)
    assert again + finished == asked
    assert objects(connected) == kept
    assert connected.rows("select status, windows_done, last_error from ops.ingestion_jobs") == [
        ("done", total, None)
    ]
    days = "select count(distinct local_date) from health.daily_metrics where metric_type = 'steps'"
    assert int(str(connected.scalar(days))) >= 7
    # The run that was killed neither stands as running nor keeps the pool.
    statuses = connected.rows("select status, count(*) from public.runs group by 1 order by 1")
    assert statuses == [("FAILURE", 1), ("SUCCESS", 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sync", "aura", "--user", "ada"), "there is no provider 'aura'; there are apple_health, dexcom"),
        (("sync", "oura", "--user", "zoe"), "there is no user 'zoe'; there is ada"),
        (("sync", "oura", "--user", "walt"), "walt has not connected Oura"),
        (("sync", "fitbit", "--user", "ada"), "Web API is shut down; connect Google Health"),
        (("sync", "libreview", "--user", "ada"), "not fetched"),
        (
            ("backfill", "oura", "--user", "ada", "--from", "2026-02-02", "--to", "2026-02-01"),
            "--from 2026-02-02 is after --to 2026-02-01",
        ),
        (
            ("backfill", "oura", "--user", "ada", "--from", "2019-12-31", "--to", "2026-02-01"),
            "days go from 2020-01-01",
        ),
        (("sync", "oura", "--user", "ada", "--days", "0"), "--days has to be 1 or more"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_fetched_is_said(connected: House, arguments: tuple[str, ...], message: str) -> None:
    from click.testing import CliRunner

    from health_pipeline.cli import main

    before = connected.scalar("select count(*) from ops.ingestion_jobs")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert connected.scalar("select count(*) from ops.ingestion_jobs") == before


def test_without_a_client_id_and_a_sandbox_the_settings_are_named(
    connected: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from health_pipeline.cli import main
    from health_pipeline.settings import load_settings

    monkeypatch.delenv("HEALTH_PIPELINE_SANDBOX_URL")
    load_settings.cache_clear()
    done = CliRunner().invoke(main, ["sync", "oura", "--user", "ada"])
    assert done.exit_code == 1
    assert "HEALTH_PIPELINE_OURA_CLIENT_ID" in done.output
    load_settings.cache_clear()
