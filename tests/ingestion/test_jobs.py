"""Ingestion jobs: what is kept of a fetch's progress, and what a second one need not ask for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import httpx
import pytest
import sqlalchemy as sa
from connecting import OURA, Connected, asked, calm, connect, order

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import fetch as fetch_module
from health_pipeline.ingestion import jobs
from health_pipeline.ingestion.fetch import FetchReport, ProviderOutageError, fetch
from health_pipeline.providers.base import Window
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

DAYS = Window(dt.date(2026, 8, 1), dt.date(2026, 9, 14))
ENTITIES = [entity for entity in OURA.entities if entity.endpoint is not None]
#: 45 days in parts of 30, of 28 where that is the longest.
WINDOWS = 2 * len(ENTITIES)

Fetch = Callable[..., FetchReport]


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada")


@pytest.fixture
def run(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings, sandbox: RunningSandbox
) -> Fetch:
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    return lambda window=DAYS, **rest: fetch(warehouse, store, vault, settings, OURA, window, **rest)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_pause", lambda _stop, _seconds: None)


def backfill(warehouse: Warehouse, user_id: int, window: Window = DAYS) -> jobs.Job:
    return jobs.create(warehouse.engine, "backfill", "oura", user_id, window)


def windows(warehouse: Warehouse, entity: str) -> list[tuple[dt.date, dt.date]]:
    query = sa.text(
        "select window_start, window_end from ops.fetched_windows where entity = :entity order by 1, 2"
    )
    with warehouse.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query, {"entity": entity})]


def age(warehouse: Warehouse, interval: str) -> None:
    """Make all that was done so much older."""
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql(
            f"update ops.ingestion_jobs set created_at = created_at - interval '{interval}'"
        )
        connection.exec_driver_sql(
            f"update ops.fetched_windows set fetched_at = fetched_at - interval '{interval}'"
        )


def test_a_job_is_asked_in_short_windows_and_counts_them(
    warehouse: Warehouse, ada: Connected, run: Fetch, sandbox: RunningSandbox
) -> None:
    job = backfill(warehouse, ada.user_id)
    steps: list[tuple[int, int]] = []
    report = run(job=job, on_progress=lambda done, total: steps.append((done, total)))
    assert report.windows == WINDOWS
    assert steps == [(number, WINDOWS) for number in range(1, WINDOWS + 1)]
    # Exactly the days that were asked for: history is not looked back from.
    assert windows(warehouse, "daily_sleep") == [
        (DAYS.start, dt.date(2026, 8, 30)),
        (dt.date(2026, 8, 31), DAYS.end),
    ]
    assert windows(warehouse, "heartrate") == [
        (DAYS.start, dt.date(2026, 8, 28)),
        (dt.date(2026, 8, 29), DAYS.end),
    ]
    done = jobs.get(warehouse.engine, job.job_id)
    assert (done.windows_done, done.windows_total) == (WINDOWS, WINDOWS)
    assert done.objects_new == report.new_objects > WINDOWS - 1
    assert done.requests_done == asked(sandbox.url, path="usercollection")


def test_what_a_job_has_raw_is_not_asked_for_again(
    warehouse: Warehouse, ada: Connected, run: Fetch, sandbox: RunningSandbox, impatient: None
) -> None:
    job = backfill(warehouse, ada.user_id)
    order(sandbox.url, "server_error", path_contains="usercollection/heartrate", count=None)
    with pytest.raises(ProviderOutageError):
        run(job=job)
    broken = jobs.get(warehouse.engine, job.job_id)
    assert 0 < broken.windows_done < WINDOWS
    assert "unavailable" in str(broken.last_error)
    calm(sandbox.url)
    # However long it was away: these days were over when they were asked for.
    age(warehouse, "40 days")
    report = run(job=jobs.get(warehouse.engine, job.job_id))
    assert report.windows_skipped == broken.windows_done
    assert report.windows == WINDOWS - broken.windows_done
    rows = httpx.get(f"{sandbox.url}/__requests").json()["requests"]
    assert {row["path"].rsplit("/", 1)[-1] for row in rows if "usercollection" in row["path"]}.isdisjoint(
        {"daily_sleep", "sleep"}
    )
    assert jobs.get(warehouse.engine, job.job_id).windows_done == WINDOWS
    # A job of the same days that is made now asks for everything.
    assert run(job=backfill(warehouse, ada.user_id)).windows_skipped == 0


def test_a_day_that_went_on_since_is_asked_for_again(
    warehouse: Warehouse, ada: Connected, run: Fetch, sandbox: RunningSandbox
) -> None:
    today = dt.datetime.now(dt.UTC).date()
    window = Window(today - dt.timedelta(days=39), today)
    job = backfill(warehouse, ada.user_id, window)
    run(window, job=job)
    assert run(window, job=job).windows == 0
    age(warehouse, "2 hours")
    report = run(window, job=jobs.get(warehouse.engine, job.job_id))
    assert report.windows == report.windows_skipped == len(ENTITIES)


def test_a_lifecycle_ends_only_when_it_is_done(warehouse: Warehouse, ada: Connected) -> None:
    engine, arguments = warehouse.engine, ("backfill", "oura", ada.user_id, DAYS)
    assert jobs.unfinished(engine, *arguments) is None
    job = jobs.create(engine, *arguments)
    assert job.status == "queued"
    for state, change in (
        ("running", lambda: jobs.begin(engine, job.job_id, "a run")),
        ("failed", lambda: jobs.finish(engine, job.job_id, "Oura answers nobody")),
        ("running", lambda: jobs.begin(engine, job.job_id, "another run")),
    ):
        change()
        found = jobs.unfinished(engine, *arguments)
        assert found is not None
        assert (found.job_id, found.status) == (job.job_id, state)
    assert jobs.get(engine, job.job_id).last_error is None
    jobs.finish(engine, job.job_id, None)
    assert jobs.unfinished(engine, *arguments) is None
    # Others are not taken for it.
    jobs.create(engine, "sync", "oura", ada.user_id, DAYS)
    jobs.create(engine, "backfill", "oura", None, DAYS)
    jobs.create(engine, "backfill", "oura", ada.user_id, Window(DAYS.start, DAYS.start))
    assert jobs.unfinished(engine, *arguments) is None
    with pytest.raises(LookupError, match="no ingestion job 999"):
        jobs.get(engine, 999)


def test_two_cannot_work_on_one_job(warehouse: Warehouse, ada: Connected) -> None:
    arguments = ("backfill", "oura", ada.user_id, DAYS)
    with jobs.only_worker(warehouse.engine, *arguments):
        with (
            pytest.raises(jobs.JobUnderWayError, match="under way in another process"),
            jobs.only_worker(warehouse.engine, *arguments),
        ):
            pass
        with jobs.only_worker(warehouse.engine, "sync", "oura", ada.user_id, DAYS):
            pass
    with jobs.only_worker(warehouse.engine, *arguments):
        pass


def test_what_was_not_granted_is_settled_and_holds_nothing_up(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, run: Fetch
) -> None:
    assert endpoint.oauth is not None
    scopes = tuple(scope for scope in endpoint.oauth.scopes if scope != "heartrate")
    ada = connect(warehouse, vault, endpoint, "ada", scopes=scopes)
    job = backfill(warehouse, ada.user_id)
    assert run(job=job).failed == []
    done = jobs.get(warehouse.engine, job.job_id)
    assert (done.windows_done, done.last_error) == (WINDOWS, None)
    assert windows(warehouse, "heartrate") == []


def test_one_persons_failure_is_on_the_job_and_the_others_are_fetched(
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    ada: Connected,
    run: Fetch,
    sandbox: RunningSandbox,
) -> None:
    ben = connect(warehouse, vault, endpoint, "ben")
    order(sandbox.url, "malformed", path_contains="daily_sleep", handle="ben")
    job = jobs.create(warehouse.engine, "reconcile", "oura", None, DAYS)
    report = run(job=job)
    assert [result.account_id for result in report.failed] == [ben.account_id]
    said = str(jobs.get(warehouse.engine, job.job_id).last_error)
    assert said.startswith(f"account {ben.account_id}: ")
    assert "daily_sleep" in said
    assert "ben" not in said
