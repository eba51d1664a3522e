"""A connection's whole life from the command line: connected and synced, erased, given to another user."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from house import House

from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import all_providers
from health_pipeline.runtime.run_job import run_job
from health_pipeline.sandbox.server import run_in_thread
from health_pipeline.staging.tables import schema_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DERIVED = (
    "health_metrics",
    "daily_metrics",
    "sleep_sessions",
    "workouts",
    "baselines",
    "training_loads",
    "recovery_scores",
    "forecasts",
)


@pytest.fixture(scope="module")
def present(house: House) -> Iterator[House]:
    """A house whose sandbox lives today: `connect` asks for the last days."""
    before = os.environ["HEALTH_PIPELINE_SANDBOX_URL"]
    with run_in_thread() as sandbox:
        os.environ["HEALTH_PIPELINE_SANDBOX_URL"] = sandbox.url
        yield house
        os.environ["HEALTH_PIPELINE_SANDBOX_URL"] = before


def connect(provider: str, handle: str, days: int) -> str:
    """`health-pipeline connect`, with somebody who opens the address and says yes; gives what it printed."""
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "health_pipeline.cli", "connect", provider, "--user", handle),
            *("--timezone", "Europe/Berlin", "--no-browser", "--port", "0", "--days", str(days)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
    )
    assert command.stdout is not None
    said = ""
    while "http" not in (line := command.stdout.readline()):
        assert line or command.poll() is None, command.communicate()[1]
        said += line
    page = httpx.get(
        httpx.URL(line.strip()).copy_merge_params({"login_hint": "ada"}), follow_redirects=True, timeout=60
    )
    assert "is connected" in page.text
    out, errors = command.communicate(timeout=600)
    assert command.returncode == 0, errors
    return said + out


def rows_of(house: House, handle: str) -> dict[str, list[str]]:
    """All that is derived of a user, but for who it is."""
    return {
        table: [
            str(row)
            for (row,) in house.rows(
                f"select to_jsonb(t) - 'user_id' from health.{table} as t inner join ops.users using (user_id) "
                "where handle = :handle order by 1",
                handle=handle,
            )
        ]
        for table in DERIVED
    }


def test_connecting_ends_with_the_first_days_in_the_warehouse(present: House) -> None:
    said = connect("oura", "ada", 20)
    assert "Health Pipeline will read ada's data at Oura" in said
    assert "Oura is connected for ada" in said
    today = dt.datetime.now(dt.UTC).date()
    assert f"Oura, ada, {today - dt.timedelta(days=19)} to {today}" in said
    nights = present.scalar(
        "select count(*) from health.sleep_sessions inner join ops.users using (user_id) where handle = 'ada' "
        "and is_main_sleep"
    )
    assert int(str(nights)) >= 18
    assert present.rows("select kind, provider, status from ops.ingestion_jobs") == [("sync", "oura", "done")]
    assert all(rows_of(present, "ada").values())


def test_what_is_erased_leaves_the_tables_as_they_were_without_it(present: House) -> None:
    before = rows_of(present, "ada")
    said = connect("whoop", "ada", 5)
    assert "WHOOP is connected for ada" in said
    with_whoop = rows_of(present, "ada")
    assert len(with_whoop["daily_metrics"]) > len(before["daily_metrics"])
    ended = present.command("disconnect", "whoop", "--user", "ada", "--delete-data", "--yes", timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "WHOOP is disconnected for ada" in ended.stdout
    assert present.rows("select 1 from ops.raw_objects where provider = 'whoop'") == []
    after = rows_of(present, "ada")
    for table in DERIVED:
        assert after[table] == before[table], table


def test_who_is_another_user_keeps_every_row_in_the_next_run(present: House) -> None:
    before = rows_of(present, "ada")
    with present.warehouse.engine.begin() as connection:
        connection.exec_driver_sql("insert into ops.users (handle) values ('ada-k')")
    merged = present.command("user", "merge", "ada", "--into", "ada-k", "--yes")
    assert merged.returncode == 0, merged.stderr
    today = dt.datetime.now(dt.UTC).date()
    doors = ("raw", *(schema_name(name) for name in all_providers()))
    outcome = run_job(
        "daily_refresh", Window(today, today), present.settings, present.warehouse, without=doors
    )
    assert outcome.success, outcome.failures
    assert not any(rows_of(present, "ada").values())
    after = rows_of(present, "ada-k")
    for table in DERIVED:
        assert after[table] == before[table], table
